"""The collectives of a program: as it is written, and as XLA compiled it."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# JAX's names for them
PRIMITIVES = {
    "all_gather": "all-gather",
    "psum": "all-reduce",
    "pmax": "all-reduce",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}
# The dtypes whose bits are not the number in their name.
BITS = {
    "token": 0,
    "pred": 8,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "s4": 4,
    "u4": 4,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALL = re.compile(r"(?:to_apply|calls|body|condition)=(%?[\w.\-]+)|branch_computations=\{(.*?)\}")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\((.*?)\)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
        kind: one of KINDS.
        shapes: (dtype, shape) of its results on one device.
        times: how often it runs in one run of the program.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of the results of one run."""
        return sum(math.prod(shape) * _bits(dtype) // 8 for dtype, shape in self.shapes)


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The collectives of a compiled program, those inside loops with the loops' trip counts."""
    found, calls = defaultdict(list), defaultdict(list)
    name = entry = ""
    for line in (compiled.as_text() or "").splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            entry = name if start[1] else entry
            continue
        trips = int(found_trips[1]) if (found_trips := _TRIPS.search(line)) else 1
        for called in _CALL.finditer(line):
            calls[name] += [
                (callee.strip().lstrip("%"), trips)
                for callee in (called[1] or called[2]).split(",")
            ]
        if match := _COLLECTIVE.search(line):
            shapes = [(dtype, _shape(dims)) for dtype, dims in _ARRAY.findall(match[1])]
            # an asynchronous one may list what goes in before what comes out
            operands = match[3].count("%")
            if len(shapes) >= 2 * operands:
                shapes = shapes[operands : 2 * operands]
            found[name].append((match[2], tuple(shapes)))
    times: Counter[str] = Counter()

    def visit(computation: str, n: int) -> None:
        times[computation] += n
        for callee, trips in calls[computation]:
            visit(callee, n * trips)

    visit(entry, 1)
    return [
        Collective(kind, shapes, times[c])
        for c, all_of_c in found.items()
        for kind, shapes in all_of_c
        if times[c]
    ]


def written(
    traced: jax.stages.Traced, sizes: Mapping[str, int]
) -> dict[tuple[str, tuple[str, ...]], tuple[int, int]]:
    """The collectives that a program's own code runs.

    Collectives that XLA adds because it splits an array that the code uses whole are not counted:
    in the training step these are a few sums of single numbers.

    Args:
        traced: the program.
        sizes: mesh axis -> size.

    Returns:
        (kind, mesh axes) -> (how many run, bytes of all their results on one device).
    """
    sums: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    for equation, times in equations(traced):
        kind = PRIMITIVES.get(equation.primitive.name)
        if not kind:
            continue
        named = equation.params.get("axes", equation.params.get("axis_name", ()))
        axes = (named,) if isinstance(named, str) else tuple(named)
        axes = tuple(axis for axis in axes if sizes[axis] > 1)
        if axes:
            count, size = sums.get((kind, axes), (0, 0))
            added = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
            sums[kind, axes] = (count + times, size + times * added)
    return dict(sorted(sums.items()))


def equations(traced: jax.stages.Traced) -> Iterator[tuple[Any, int]]:
    """(equation, how often it runs) of a program; the equations of a loop or an inner function come
    after the loop or call itself.
    """
    return _equations(traced.jaxpr.jaxpr, 1)


def _equations(jaxpr: core.Jaxpr, times: int) -> Iterator[tuple[Any, int]]:
    for equation in jaxpr.eqns:
        yield equation, times
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                yield from _equations(getattr(value, "jaxpr", value), inner)


def totals(found: list[Collective]) -> dict[str, tuple[int, int]]:
    """kind -> (how many run, bytes of all their results on one device)."""
    sums: dict[str, tuple[int, int]] = {}
    for c in found:
        count, size = sums.get(c.kind, (0, 0))
        sums[c.kind] = (count + c.times, size + c.times * c.bytes)
    return dict(sorted(sums.items()))


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(d) for d in dims.split(",") if d)


def _bits(dtype: str) -> int:
    return BITS[dtype] if dtype in BITS else int(re.findall(r"\d+", dtype)[0])

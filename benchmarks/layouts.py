"""What layouts of a config send and keep, from its training step's own program. usage: python -m
benchmarks.layouts [--write]

--write puts the tables into docs/scaling.md.
"""

import dataclasses
import importlib
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax

from t6jax.config import ModelConfig
from t6jax.parallel.collectives import equations, written
from t6jax.parallel.mesh import MESH_AXES, make_mesh
from t6jax.training.metrics import flops_per_token
from t6jax.training.plan import NODE
from t6jax.training.step import Trainer

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "scaling.md"
# an H100 SXM by its data sheet: bytes a second in each direction to the others of its node and, a
# 400 Gbit/s adapter for each GPU, to other nodes; and the share of its dense bfloat16 rate that the
# step's products are taken to reach
NVLINK, NETWORK = 450e9, 50e9
FLOPS, SHARE = 989e12, 0.45
MEMORY = 80e9

# rows of a micro-batch on each device, by config
ROWS = {"small_tpa": 32, "medium_tpa": 16, "large_tpa": 8, "xl_tpa": 8, "t6_7b": 2}
# devices -> layouts
LAYOUTS = {
    8: ({"data": 8}, {"fsdp": 8}, {"data": 4, "tensor": 2}, {"fsdp": 4, "sequence": 2}),
    64: (
        {"data": 64},
        {"data": 8, "fsdp": 8},
        {"fsdp": 64},
        {"fsdp": 8, "tensor": 8},
        {"fsdp": 32, "sequence": 2},
    ),
    512: (
        {"data": 512},
        {"data": 64, "fsdp": 8},
        {"fsdp": 512},
        {"fsdp": 64, "tensor": 8},
        {"data": 8, "fsdp": 32, "sequence": 2},
    ),
}


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one step on one device. state: bytes of parameters, gradients and optimizer; activations:
    bytes that a micro-batch keeps for its backward pass, logits not counted. node, network: bytes
    that leave the device, by the links they take.
    """

    rows: int
    micro_batches: int
    state: int
    activations: int
    node: float
    network: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """That sending takes, one after the other at the links' full rates."""
        return self.node / NVLINK + self.network / NETWORK


def costs(config: Mapping[str, Any], sizes: Mapping[str, int], rows: int) -> Costs | None:
    """Of a config on a mesh, in micro-batches of at most so many rows a device; None where the
    batch has too few rows.
    """
    model = ModelConfig.from_dict(config["model"])
    split = sizes.get("data", 1) * sizes.get("fsdp", 1)
    # a power of two, so that layouts can be compared: the paper's 480 as 512
    batch = 2 ** math.ceil(math.log2(config["batch_size"]))
    # tensor and sequence leave room for as many more rows as they divide activations by
    rows = min(rows * sizes.get("tensor", 1) * sizes.get("sequence", 1), batch // split)
    if not rows:
        return None
    parts = batch // split // rows
    mesh_sizes = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
    config = dict(config) | {"batch_size": batch, "accumulation_steps": parts, "mesh": mesh_sizes}
    # as a loop, whose scan says what is kept; unrolled, the last layer is gathered once, not twice
    config["model"] = dict(config["model"]) | {"remat": "dots", "unroll": False}
    model = ModelConfig.from_dict(config["model"])
    trainer = Trainer(config, model, make_mesh(mesh_sizes, plan=True))
    windows = jax.ShapeDtypeStruct(
        (batch, model.context_length + 1), "int32", sharding=trainer.batch_sharding
    )
    traced = trainer.step.trace(trainer.abstract_arrays(), windows)
    node = network = 0.0
    for (kind, axes), (_, size) in written(traced, mesh_sizes).items():
        n = math.prod(mesh_sizes[a] for a in axes)
        leaving = sent(kind, size, n)
        # neighbours on the last axes share a node; what spans nodes goes at the network's rate
        span = n * math.prod(mesh_sizes[a] for a in MESH_AXES[MESH_AXES.index(axes[-1]) + 1 :])
        node, network = (node + leaving, network) if span <= NODE else (node, network + leaving)
    state, shardings = trainer.abstract_state, trainer.shardings
    size = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
    total = lambda tree, of: sum(jax.tree.leaves(jax.tree.map(size, tree, of)))
    tokens = batch * model.context_length
    devices = math.prod(mesh_sizes.values())
    return Costs(
        rows=rows,
        micro_batches=parts,
        state=2 * total(state.params, shardings.params)
        + total(state.opt_state, shardings.opt_state),
        activations=_kept(traced, model.num_layers),
        node=node,
        network=network,
        compute_seconds=tokens
        * flops_per_token(model, model.context_length)
        / devices
        / (FLOPS * SHARE),
    )


def sent(kind: str, size: float, devices: int) -> float:
    """Bytes that leave one of so many devices in a collective, at a ring's cost. size: of its
    results on one device.
    """
    return size * {"reduce-scatter": devices - 1, "all-reduce": 2 * (devices - 1) / devices}.get(
        kind, (devices - 1) / devices
    )


def _kept(traced: jax.stages.Traced, layers: int) -> int:
    """Bytes that the scan over the layers keeps of its forward pass."""
    forward = next(
        e
        for e, _ in equations(traced)
        if e.primitive.name == "scan" and e.params["length"] == layers
    )
    pairs = zip(forward.outvars, forward.params["jaxpr"].out_avals, strict=True)
    stacked = [v.aval for v, in_a_layer in pairs if v.aval.shape != in_a_layer.shape]
    return sum(x.size * x.dtype.itemsize for x in stacked)


def table(name: str) -> str:
    """A config's layouts, in Markdown."""
    config = load(name)
    model = ModelConfig.from_dict(config["model"])
    batch = 2 ** math.ceil(math.log2(config["batch_size"]))
    lines = [
        f"**{name}**, {model.parameter_count / 1e9:.3g} B parameters, {batch} x "
        f"{model.context_length} tokens a step",
        "",
        "| H100s | mesh | rows x micro-batches | state GB | activations GB | in the node GB | "
        "between nodes GB | sending s "
        "| computing s | sending / computing |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(line(name, devices, sizes) for devices, layouts in LAYOUTS.items() for sizes in layouts),
    ]
    return "\n".join(lines)


def line(name: str, devices: int, sizes: Mapping[str, int]) -> str:
    """A layout's line of the table."""
    mesh = ", ".join(f"{axis} {n}" for axis, n in sizes.items())
    c = costs(load(name), sizes, ROWS[name])
    if c is None:
        return f"| {devices} | {mesh} | fewer rows than devices | | | | | | | |"
    fits = "" if c.state + c.activations < MEMORY else " (too much)"
    return (
        f"| {devices} | {mesh} | {c.rows} x {c.micro_batches} | {c.state / 1e9:.3g} | "
        f"{c.activations / 1e9:.3g}{fits} "
        f"| {c.node / 1e9:.3g} | {c.network / 1e9:.3g} | {c.seconds:.3g} | {c.compute_seconds:.3g} "
        f"| {c.seconds / c.compute_seconds:.2f} |"
    )


def load(name: str) -> dict[str, Any]:
    """A config by its file's name."""
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with these configs' tables in their places."""
    for name, text in tables.items():
        begin, end = f"<!-- benchmarks.layouts: {name} -->\n", "<!-- end -->"
        page = re.sub(
            re.escape(begin) + ".*?" + re.escape(end),
            lambda _, t=f"{begin}{text}\n{end}": t,
            page,
            flags=re.S,
        )
    return page


def main() -> None:
    tables = {name: table(name) for name in ROWS}
    print("\n\n".join(tables.values()))
    if "--write" in sys.argv:
        PAGE.write_text(with_tables(PAGE.read_text(), tables))


if __name__ == "__main__":
    main()

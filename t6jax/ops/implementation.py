"""The one way in which an op's implementation is chosen.

An op has a definition in plain JAX, "xla", which takes every call, and kernels for NVIDIA GPUs,
each of which says why it does not take a call, or None. An op's `implementation` argument names one
of them; with None, the first that takes the call runs where the program is lowered for CUDA, and
the definition elsewhere. Which platform that is, JAX says when it lowers, not the machine's first
device: a program that is lowered for CUDA on a machine without a GPU has the kernels in it.

What was chosen, and why no faster kernel was, is logged once for each kind of call, at level INFO
of the logger "t6jax":

    logging.basicConfig(level=logging.INFO)
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from pallas_kernels.device import compute_capability, multiprocessors
from t6jax.errors import InputError

logger = logging.getLogger("t6jax")

HOPPER_NAMES = "H100", "H200", "H800", "H20"
HOPPER_CAPABILITY = 90


class GPU(NamedTuple):
    """The GPU that a program is lowered for."""

    hopper: bool
    multiprocessors: int


def target_gpu() -> GPU:
    """The GPU that a program which is traced here will run on, if it is lowered for CUDA.

    The device that the mesh in context names, or else this machine's first GPU, or else a Hopper.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform == "gpu":
        hopper = any(name in device.device_kind for name in HOPPER_NAMES)
        return GPU(hopper, device.num_cores or multiprocessors())
    return GPU(compute_capability() == HOPPER_CAPABILITY, multiprocessors())


def not_hopper() -> str | None:
    """Why a kernel for Hopper GPUs does not run on the target, or None."""
    return None if target_gpu().hopper else "it needs a Hopper GPU (H100, H200)"


def choose(
    op: str,
    refusals: Mapping[str, Callable[[], str | None]],
    implementation: str | None,
    kind: Callable[[], str],
) -> tuple[str, ...]:
    """The kernels that take a call, fastest first; none: the definition takes it.

    Args:
      op: the op's name.
      refusals: for each kernel, fastest first, what says why it does not take the call, or None.
      implementation: a kernel's name, "xla" or None.
      kind: describes the call for the log, by what the choice depends on.

    Raises:
      InputError: the op has no such implementation.
      NotImplementedError: the named implementation does not take the call.
    """
    if implementation == "xla":
        return ()
    if implementation is not None:
        if not isinstance(implementation, str) or implementation not in refusals:
            raise InputError(
                f"implementation={implementation!r} of {op} is unknown; take one of "
                f"{', '.join(map(repr, refusals))}, 'xla' or None"
            )
        if reason := refusals[implementation]():
            raise NotImplementedError(
                f"implementation={implementation!r} does not take this call of {op}: {reason}"
            )
        return (implementation,)
    reasons = {name: refuse() for name, refuse in refusals.items()}
    takers = tuple(name for name, reason in reasons.items() if reason is None)
    if logger.isEnabledFor(logging.INFO):
        report(op, kind(), takers[0] if takers else "xla", reasons)
    return takers


_reported: set[tuple[str, ...]] = set()


def report(op: str, kind: str, taken: str, reasons: Mapping[str, str | None]) -> None:
    """Logs, once, what takes a kind of call, and why the kernels before it do not."""
    platform = _platform_of_context()
    elsewhere = platform not in (None, "cuda")
    key = op, kind, taken, str(platform)
    if key in _reported:
        return
    _reported.add(key)
    if elsewhere:
        logger.info("%s of %s: xla, lowered for %s", op, kind, platform)
        return
    names = list(reasons)
    faster = names[: names.index(taken)] if taken in names else names
    why = "".join(f"; not {name}: {reasons[name]}" for name in faster if reasons[name])
    where = "" if taken == "xla" else " where lowered for CUDA, xla elsewhere"
    logger.info("%s of %s: %s%s%s", op, kind, taken, where, why)


def by_platform(
    kernel: Callable, definition: Callable, *arguments: Any, implementation: str | None = None
) -> Any:
    """kernel(*arguments) where the program is lowered for CUDA, elsewhere definition(*arguments).

    Both return arrays of the same shapes and dtypes, in lists or tuples. Neither may be
    differentiated through: use this inside of a jax.custom_vjp.

    implementation: the name that the user gave the kernel. It then stands alone, and lowering for
        another platform raises NotImplementedError.
    """
    if implementation is not None:
        require = functools.partial(_require_cuda, implementation=implementation)
        return kernel(*jax.tree.map(require, arguments))
    platform = _platform_of_context(*jax.tree.leaves(arguments))
    if platform is None:
        structures = []

        def leaves(f: Callable) -> Callable:
            def run(*arguments: Any) -> list[Array]:
                results, structure = jax.tree.flatten(f(*arguments))
                structures.append(structure)
                return results

            return run

        results = jax.lax.platform_dependent(
            *arguments, cuda=leaves(kernel), default=leaves(definition)
        )
        return jax.tree.unflatten(structures[-1], results)
    return (kernel if platform == "cuda" else definition)(*arguments)


def _platform_of_context(*arrays: Array) -> str | None:
    """The platform of the mesh in context, or of the arrays' mesh; None where there is none."""
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in arrays)]
    devices = [mesh.abstract_device for mesh in meshes if mesh.abstract_device is not None]
    if not devices:
        return None
    return "cuda" if devices[0].platform == "gpu" else devices[0].platform


def _require_cuda(x: Array, *, implementation: str) -> Array:
    """x; lowering it for another platform than CUDA raises NotImplementedError."""
    return _require_cuda_p.bind(x, implementation=implementation)


def _require_cuda_lowering(ctx, x, *, implementation):
    platforms = ctx.platforms or ctx.module_context.platforms
    if set(platforms) != {"cuda"}:
        raise NotImplementedError(
            f"implementation={implementation!r} needs an NVIDIA GPU; this program is lowered for "
            f"{', '.join(platforms)}"
        )
    return [x]


@functools.partial(jax.jit, static_argnames="implementation")
def _require_cuda_jit(x, *, implementation):
    return _require_cuda_p.bind(x, implementation=implementation)


_require_cuda_p = Primitive("require_cuda")
_require_cuda_p.def_impl(_require_cuda_jit)
_require_cuda_p.def_abstract_eval(lambda x, **_: x)
batching.primitive_batchers[_require_cuda_p] = lambda args, axes, **params: (
    _require_cuda_p.bind(*args, **params),
    axes[0],
)
mlir.register_lowering(_require_cuda_p, _require_cuda_lowering)

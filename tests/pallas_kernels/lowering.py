"""Lowering for an NVIDIA GPU on a machine without one."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

HOPPER = AbstractMesh(
    (1,),
    ("x",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice("NVIDIA H100", num_cores=132, platform="gpu"),
)


def triton_kernels(f, *args) -> list[str]:
    """Names of the Triton kernels that jit(f) lowers to on a Hopper GPU."""
    with jax.sharding.use_abstract_mesh(HOPPER):
        text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "__gpu$xla.gpu.triton" in line]
    return [line.split('name = "')[1].split('"')[0] for line in lines]

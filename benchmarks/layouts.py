"""What each layout of a config sends and keeps, from the program of its training step.

    python -m benchmarks.layouts [--write]

Prints a table for each config; --write also puts the tables into docs/scaling.md.
"""

import argparse
import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping

import jax

from benchmarks.record import ROOT
from benchmarks.tables import markdown, with_tables
from t6jax.config import MeshConfig, RunConfig
from t6jax.parallel.collectives import equations, written
from t6jax.parallel.mesh import MESH_AXES, bytes_per_device, make_mesh
from t6jax.training.aot import GPUS_PER_NODE
from t6jax.training.metrics import flops_per_token
from t6jax.training.step import Trainer

PAGE = ROOT / "docs" / "scaling.md"
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
    """What one step costs one device.

    Attributes:
        rows: Rows of a micro-batch.
        micro_batches: Micro-batches of a step.
        state: Bytes of parameters, gradients and optimizer state.
        activations: Bytes that a micro-batch keeps for its backward pass, without logits.
        node: Bytes that leave the device over the links inside a node.
        network: Bytes that leave the device over the network between nodes.
        compute_seconds: Seconds of the step's matrix products and attention.
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
        """Seconds of sending, one collective after the other at the links' full rates."""
        return self.node / NVLINK + self.network / NETWORK


def costs(config: RunConfig, sizes: Mapping[str, int], rows: int) -> Costs | None:
    """The costs of a config on a mesh.

    Args:
        config: The config; its batch is rounded up to a power of two.
        sizes: The mesh's axes that are larger than 1.
        rows: The most rows of a micro-batch on one device.
    Returns:
        The costs, or None where the batch has fewer rows than devices to split it.
    """
    split = sizes.get("data", 1) * sizes.get("fsdp", 1)
    batch = _batch(config)
    # tensor and sequence leave room for as many more rows as they divide activations by
    rows = min(rows * sizes.get("tensor", 1) * sizes.get("sequence", 1), batch // split)
    if not rows:
        return None
    micro_batches = batch // split // rows
    mesh_sizes = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
    # as a loop, whose scan says what is kept; unrolled, the last layer is gathered once, not twice
    model = dataclasses.replace(config.model, remat="dots", unroll=False)
    config = dataclasses.replace(
        config,
        batch_size=batch,
        accumulation_steps=micro_batches,
        mesh=MeshConfig(**mesh_sizes),
        model=model,
    )
    trainer = Trainer(config, make_mesh(mesh_sizes, plan=True))
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
        node, network = (
            (node + leaving, network) if span <= GPUS_PER_NODE else (node, network + leaving)
        )
    state = trainer.abstract_arrays()
    tokens = batch * model.context_length
    devices = math.prod(mesh_sizes.values())
    return Costs(
        rows=rows,
        micro_batches=micro_batches,
        state=2 * bytes_per_device(state.params) + bytes_per_device(state.opt_state),
        activations=_kept(traced, model.num_layers),
        node=node,
        network=network,
        compute_seconds=tokens
        * flops_per_token(model, model.context_length)
        / devices
        / (FLOPS * SHARE),
    )


def _batch(config: RunConfig) -> int:
    """Rows of a step: a power of two, to compare layouts; the paper's 480 as 512."""
    return 2 ** math.ceil(math.log2(config.batch_size))


def sent(kind: str, size: float, devices: int) -> float:
    """Bytes that leave one device in a collective, at a ring's cost.

    Args:
        kind: The collective.
        size: Bytes of its results on one device.
        devices: How many devices take part.
    """
    ring = (devices - 1) / devices
    return size * {"reduce-scatter": devices - 1, "all-reduce": 2 * ring}.get(kind, ring)


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


HEADER = (
    "H100s",
    "mesh",
    "rows x micro-batches",
    "state GB",
    "activations GB",
    "in the node GB",
    "between nodes GB",
    "sending s",
    "computing s",
    "sending / computing",
)


def table(name: str) -> str:
    """A config's layouts, in Markdown."""
    config = load(name)
    model = config.model
    above = (
        f"**{name}**, {model.parameter_count / 1e9:.3g} B parameters, {_batch(config)} x "
        f"{model.context_length} tokens a step"
    )
    rows = [cells(name, n, sizes) for n, layouts in LAYOUTS.items() for sizes in layouts]
    return "\n".join([above, "", *markdown(HEADER, rows)])


def cells(name: str, devices: int, sizes: Mapping[str, int]) -> list[str]:
    """A layout's row of the table."""
    mesh = ", ".join(f"{axis} {n}" for axis, n in sizes.items())
    c = costs(load(name), sizes, ROWS[name])
    if c is None:
        return [str(devices), mesh, "fewer rows than devices", *[""] * 7]
    fits = "" if c.state + c.activations < MEMORY else " (too much)"
    numbers = c.node / 1e9, c.network / 1e9, c.seconds, c.compute_seconds
    return [
        str(devices),
        mesh,
        f"{c.rows} x {c.micro_batches}",
        f"{c.state / 1e9:.3g}",
        f"{c.activations / 1e9:.3g}{fits}",
        *(f"{x:.3g}" for x in numbers),
        f"{c.seconds / c.compute_seconds:.2f}",
    ]


def load(name: str) -> RunConfig:
    """A config by its file's name."""
    config = importlib.import_module(f"configs.{name}").get_config()
    return RunConfig.from_dict(config.to_dict())


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--write", action="store_true", help="write docs/scaling.md's tables")
    args = arguments.parse_args()
    tables = {name: table(name) for name in ROWS}
    print("\n\n".join(tables.values()))
    if args.write:
        made = {name: functools.partial(tables.__getitem__, name) for name in tables}
        PAGE.write_text(with_tables(PAGE.read_text(), "benchmarks.layouts", made))


if __name__ == "__main__":
    main()

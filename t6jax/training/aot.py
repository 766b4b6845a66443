"""The training step compiled ahead of time, for devices that need not be there: the memory it
needs, and what it sends.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from t6jax.config import RunConfig
from t6jax.errors import InputError

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
VIRTUAL = "virtual CPU device"
GPUS_PER_NODE = 8


def compile_for(config: RunConfig, devices: int) -> dict[str, Any]:
    """Compiles the step for so many devices, in a process of its own, and says what it needs.

    On a machine with a GPU it is compiled for GPUs of that kind: what training will compile, except
    for the choice among cuBLAS's algorithms. (If a step fills the card, XLA orders it by the memory
    that is free, which is more while training.) On other machines it is compiled for virtual CPU
    devices, with the blocks as a loop even if model.unroll is set. That changes nothing that is
    stored; the last layer's parameters are gathered once, not twice.

    Returns:
        device: its name. seconds: of compiling. arguments, temporary: bytes of a device.
        collectives: [kind, mesh axes, how many a step, bytes of all their results], as the program
        is written (compiled for CPU, sums of bfloat16 are taken in float32).

    Raises:
        InputError: it does not compile.
    """
    # nothing is computed: a GPU that others use stays theirs
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if jax.default_backend() != "gpu":
        model = dataclasses.replace(config.model, unroll=False)
        config = dataclasses.replace(config, model=model)
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        }
    run = subprocess.run(
        [sys.executable, "-m", "t6jax.training.aot"],
        input=json.dumps(config.to_dict()),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise InputError(
            f"the step does not compile for {devices} devices: "
            f"{(run.stderr.strip() or 'killed').splitlines()[-1]}"
        )
    return json.loads(run.stdout)


def devices_for(
    count: int,
) -> tuple[Sequence[jax.Device], dict[str, Any]]:  # pyright: ignore[reportInvalidTypeForm] # a class
    """So many devices to compile for, and the compiler's options."""
    if jax.default_backend() != "gpu":
        return jax.devices(), {}
    nodes, each = (
        (count // GPUS_PER_NODE, GPUS_PER_NODE) if count % GPUS_PER_NODE == 0 else (1, count)
    )
    topology = topologies.get_topology_desc(platform="cuda", topology=f"1x{nodes}x{each}")
    # no autotuning: there is no device to try algorithms on
    return topology.devices, {"xla_gpu_autotune_level": "0"}


def main() -> None:
    from t6jax.parallel.collectives import written
    from t6jax.parallel.mesh import make_mesh
    from t6jax.training.step import Trainer

    config = RunConfig.from_dict(json.load(sys.stdin))
    sizes = config.mesh.to_dict()
    devices, options = devices_for(math.prod(sizes.values()))
    mesh = make_mesh(sizes, devices)
    trainer = Trainer(config, mesh, document_start=0 if config.data.document_masking else None)
    shape = (config.batch_size, config.model.context_length + 1)
    batch = jax.ShapeDtypeStruct(shape, "int32", sharding=trainer.batch_sharding)
    began = time.perf_counter()
    traced = trainer.step.trace(trainer.abstract_arrays(), batch)
    memory = traced.lower().compile(compiler_options=options).memory_analysis()
    sent = written(traced, trainer.mesh.shape)
    print(
        json.dumps(
            {
                "device": VIRTUAL if devices[0].platform == "cpu" else devices[0].device_kind,
                "seconds": time.perf_counter() - began,
                "arguments": memory.argument_size_in_bytes,
                "temporary": memory.temp_size_in_bytes,
                "collectives": [[kind, axes, *numbers] for (kind, axes), numbers in sent.items()],
            }
        )
    )


if __name__ == "__main__":
    main()

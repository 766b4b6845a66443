"""The training step of a config, compiled for a mesh of devices that are not at hand: what it
needs, and what it sends.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from t6jax.errors import InputError

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
VIRTUAL = "virtual CPU device"
NODE = 8  # GPUs


def compile_for(config: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """What XLA says of the step on each of so many devices, compiled in a process of its own.

    Where there is a GPU, for so many of its kind: what training will compile, but for the choice
    among cuBLAS's algorithms. (Where a step fills the card, XLA orders it by the memory there is,
    and training has another idea of that.) Without one, for virtual CPU devices. There blocks are
    compiled as a loop even where model.unroll is set, which changes nothing that is stored, and of
    what is sent that the last layer's parameters are gathered once, not twice.

    device: its name. seconds: that compiling took. arguments, temporary: bytes. collectives: [kind,
    mesh axes, how many a step, bytes of all their results], as the program is written: compiled for
    CPU, sums of bfloat16 are taken in float32. Raises InputError where it does not compile.
    """
    # nothing is computed: a GPU that others use stays theirs
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if jax.default_backend() != "gpu":
        config = {**config, "model": {**config["model"], "unroll": False}}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        }
    run = subprocess.run(
        [sys.executable, "-m", "t6jax.training.plan"],
        input=json.dumps(config),
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


def devices_for(count: int) -> tuple[Sequence[jax.Device], dict[str, Any]]:
    """So many devices to compile for, and the compiler's options."""
    if jax.default_backend() != "gpu":
        return jax.devices(), {}
    nodes, each = (count // NODE, NODE) if count % NODE == 0 else (1, count)
    topology = topologies.get_topology_desc(platform="cuda", topology=f"1x{nodes}x{each}")
    return topology.devices, {
        "xla_gpu_autotune_level": "0"
    }  # there is nothing to try algorithms on


def main() -> None:
    from t6jax.config import ModelConfig
    from t6jax.parallel.collectives import written
    from t6jax.parallel.mesh import make_mesh
    from t6jax.training.step import Trainer

    config = json.load(sys.stdin)
    model = ModelConfig.from_dict(config["model"])
    devices, options = devices_for(math.prod(config["mesh"].values()))
    mesh = make_mesh(config["mesh"], devices)
    trainer = Trainer(
        config, model, mesh, document_start=0 if config["data"]["document_masking"] else None
    )
    shape = (config["batch_size"], model.context_length + 1)
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

"""The training step of a config, compiled for a mesh of virtual CPU devices: what it needs without the devices at hand."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from t6jax.errors import InputError

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def compile_for(config: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """What XLA says of the step on each of so many devices, compiled for CPU in a process of its own.

    seconds: that compiling took. arguments, temporary: bytes. collectives: [kind, mesh axes, how many a step, bytes of all
    their results], as the program is written: compiled for CPU, sums of bfloat16 are taken in float32.
    Blocks are compiled as a loop even where model.unroll is set, which changes nothing that is stored, and of what is sent that
    the last layer's parameters are gathered once, not twice.
    Raises InputError where it does not compile.
    """
    config = {**config, "model": {**config["model"], "unroll": False}}
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    run = subprocess.run(
        [sys.executable, "-m", "t6jax.training.plan"],
        input=json.dumps(config),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise InputError(f"the step does not compile for {devices} devices: {(run.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(run.stdout)


def main() -> None:
    import jax

    from t6jax.config import ModelConfig
    from t6jax.training.compiled import written
    from t6jax.training.sharding import make_mesh
    from t6jax.training.step import Trainer

    config = json.load(sys.stdin)
    model = ModelConfig.from_dict(config["model"])
    trainer = Trainer(config, model, make_mesh(config["mesh"]), document_start=0 if config["data"]["document_masking"] else None)
    shape = (config["batch_size"], model.context_length + 1)
    batch = jax.ShapeDtypeStruct(shape, "int32", sharding=trainer.batch_sharding)
    began = time.perf_counter()
    traced = trainer.step.trace(trainer.abstract_arrays(), batch)
    memory = traced.lower().compile().memory_analysis()
    sent = written(traced, trainer.mesh.shape)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "arguments": memory.argument_size_in_bytes,
                "temporary": memory.temp_size_in_bytes,
                "collectives": [[kind, axes, *numbers] for (kind, axes), numbers in sent.items()],
            }
        )
    )


if __name__ == "__main__":
    main()

"""On an NVIDIA GPU: the whole road runs."""

import re
import subprocess

from tests.conftest import command, process_options


def test_training_evaluating_and_generating_run_and_report_mfu(tmp_path):
    options = process_options()
    options["env"].pop("JAX_PLATFORMS")
    run = lambda *c: subprocess.run(command(*c), **options, capture_output=True, check=True).stdout
    small = [
        f"--config.{key}"
        for key in (
            "model.num_layers=2",
            "steps=40",
            "optimizer.decay_steps=600",
            "log.tensorboard=False",
        )
    ]
    bf16 = [
        "--config.model.dtype=bfloat16",
        "--config.model.attention.num_heads=47",
        "--config.model.attention.head_dim=64",
    ]
    out = run(
        "train.py",
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.data.source=t6jax",
        *small,
        *bf16,
    )
    assert re.search(r"MFU \d+\.\d%", out), out
    first, last = (
        float(x)
        for x in re.findall(r"  loss (\d\.\d+)", out)[:: len(re.findall(r"  loss ", out)) - 1]
    )
    assert last < first - 0.3
    assert "model" in run("eval.py", f"--ckpt={tmp_path}")
    assert run("generate.py", f"--ckpt={tmp_path}", "--prompt=def ").startswith("def ")

"""What a run reports: progress lines, metrics.jsonl and TensorBoard events; and the FLOP that MFU
is computed from.
"""

import json
import pathlib

import jax

from t6jax.config import ModelConfig
from t6jax.extras import needs
from t6jax.files import write_atomically

METRICS = "metrics.jsonl"

# Dense bfloat16 FLOP/s of a device by its data sheet. The first name that the device's kind
# contains counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_of(device_kind: str) -> float | None:
    """Peak FLOP/s of one device; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None if it is not known."""
    peak = peak_of(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()


def flops_per_token(config: ModelConfig, length: int) -> float:
    """FLOP of a forward and a backward pass for each token, which MFU is counted with.

    6 for each parameter (the tied embedding counted once, as the head), and Q K^T and P V over the
    tokens that a token sees, length / 2 on average: 2 FLOP in each of 3 passes, for each feature of
    a key and of a value. What is recomputed, and forming Q, K and V from factors, is not counted.
    """
    a = config.attention
    seen = a.num_heads * (a.query_dim + a.value_dim) * length / 2
    return 6 * config.parameter_count + config.num_layers * 6 * seen


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard events. Only the first process writes.

    Args:
        workdir: the run's directory.
        step: where the run resumes; what an interrupted run logged of later steps is dropped.
        tensorboard: write TensorBoard events too.
    """

    def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool):
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        path = workdir / METRICS
        _drop_later(path, step)
        self._file = path.open("a")
        if tensorboard:
            with needs("train"):
                from tensorboardX import SummaryWriter
            self._events = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=step + 1 if step else None
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs values under a step."""
        if self._file is None:
            return
        # one write a line: a killed run leaves at most one broken line, at the end
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def event(self, step: int, values: dict[str, str | int]) -> None:
        """Logs what happened at a step, to metrics.jsonl only."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step} | values) + "\n")
            self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _drop_later(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # the line that a kill cut short
            pass
    write_atomically(path, "".join(kept))


def progress_line(
    step: int, steps: int, values: dict[str, float], seconds_left: float | None
) -> str:
    """One line for people. The speed and the time left are shown if they are known."""
    shown = [f"step {step:>{len(str(steps))}}/{steps}", f"loss {values['train_loss']:.4f}"]
    shown.append(f"lr {values['learning_rate']:.2e}")
    if "tokens_per_second" in values:
        shown.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in values:
        shown.append(f"MFU {values['mfu']:.1%}")
    if seconds_left is not None:
        shown.append(f"{duration(seconds_left)} left")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """A time for people: 42s, 3m07s, 5h20m, 2d04h."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"

"""What a run reports: progress lines, metrics.jsonl and TensorBoard events; and the FLOP that MFU
is computed from.
"""

import contextlib
import errno
import json
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from t6jax.config import ModelConfig
from t6jax.files import write_atomically
from t6jax.training.tensorboard import TensorBoard

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

    Attributes:
        failed: which file cannot be written, and why; "" as long as all can.
    """

    def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool):
        self.failed = ""
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        self._path = workdir / METRICS
        _drop_later(self._path, step)
        self._file = self._path.open("ab", buffering=0)
        if tensorboard:
            self._events = TensorBoard(workdir / "tensorboard", step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values under a step."""
        self.event(step, values)
        if self._events is not None and not self.failed:
            with self._noting(self._events.path):
                self._events.write(step, values)

    def event(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs what happened at a step, to metrics.jsonl only."""
        if self._file is None or self.failed:
            return
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        with self._noting(self._path):
            # one write a line: a killed run leaves at most one broken line, at the end
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Writes out what is still buffered: before each checkpoint, so that a run that goes on
        from there lacks nothing of before it.
        """
        if self._events is not None and not self.failed:
            with self._noting(self._events.path):
                self._events.flush()

    @contextlib.contextmanager
    def _noting(self, path: pathlib.Path) -> Iterator[None]:
        """Notes that a file cannot be written; nothing more is logged then."""
        try:
            yield
        except OSError as e:
            self.failed = f"{path} cannot be written: {e.strerror or e}"

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            # what could not be written before cannot be written now
            with contextlib.suppress(OSError):
                self._events.close()


def _drop_later(path: pathlib.Path, step: int) -> None:
    """Drops what was logged of later steps, and a last line that a kill cut short. Lines that
    nobody could have logged are put into another file, with a warning.
    """
    if not path.exists():
        return
    kept, unreadable = [], []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            number = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            number = None
        if type(number) is int:
            kept += [line.rstrip(b"\r\n") + b"\n"] if number <= step else []
        elif line.endswith(b"\n"):
            unreadable.append(line)
    if unreadable:
        aside = path.with_name(f"{path.name}.unreadable")
        with aside.open("ab") as file:
            file.writelines(unreadable)
        warnings.warn(
            f"{len(unreadable)} line(s) of {path} are no JSON objects with a step: they were moved "
            f"to {aside.name}",
            stacklevel=3,
        )
    write_atomically(path, b"".join(kept))


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

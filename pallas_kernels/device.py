"""The GPU that kernels are made for: the first of this process, or one that is assumed on a machine
without a GPU, where a call can be lowered but not run.
"""

import functools
from typing import Any

import jax


def compute_capability() -> int:
    """Such as 90, which is Hopper's and what is assumed."""
    gpu = _first_gpu()
    return 90 if gpu is None else int(gpu.compute_capability.replace(".", ""))


def multiprocessors() -> int:
    """How many the GPU has; an H200 is assumed."""
    return getattr(_first_gpu(), "core_count", 132)


@functools.cache
def _first_gpu() -> Any:
    return next((device for device in jax.local_devices() if device.platform == "gpu"), None)

"""Lowering Triton kernels for an NVIDIA GPU on a machine without one."""

import contextlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import jax
import pytest


def triton_kernels(f: Callable, *args) -> list[str]:
    """Names of the Triton kernels that jit(f) calls, compiled for Hopper on the way."""
    with without_cuda_plugin():
        lowered = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))
    return triton_kernels_in(lowered.as_text())


def triton_kernels_in(text: str) -> list[str]:
    """Names of the Triton kernels in StableHLO, from the PTX that each call carries."""
    names = []
    for config in re.findall(r'@triton_kernel_call\(.*backend_config = "((?:[^"\\]|\\.)*)"', text):
        escaped = rb"\\(\\|[0-9A-F]{2})"
        unescape = lambda m: b"\\" if m[1] == b"\\" else bytes([int(m[1], 16)])
        call = zlib.decompress(re.sub(escaped, unescape, config.encode()))
        names.append(re.search(rb"\.entry (\w+)\(", call)[1].decode())
    return names


@contextlib.contextmanager
def without_cuda_plugin() -> Iterator[None]:
    """jax-triton where JAX's CUDA plugin is missing.

    The plugin only packs compiled kernels for XLA. The compiler is Triton's, as on a GPU.
    """
    pytest.importorskip("triton")

    def kernel(name, num_warps, num_ctas, shared_mem_bytes, ptx, *_):
        return ptx

    packing = dict(
        TritonKernel=kernel,
        TritonKernelCall=lambda ptx, *_: SimpleNamespace(to_proto=lambda *_: ptx.encode()),
        create_array_parameter=lambda *_: None,
        get_compute_capability=None,  # asking for it fails: there may be no GPU
        get_serialized_metadata=None,
    )
    is_jax_triton = lambda name: name.split(".")[0] == "jax_triton"
    with contextlib.ExitStack() as stack:
        for name, value in packing.items():
            stack.enter_context(mock.patch(f"jaxlib.gpu_triton.{name}", value, create=True))
        stack.enter_context(mock.patch.dict(sys.modules))  # imported anew, and forgotten after
        for name in filter(is_jax_triton, list(sys.modules)):
            del sys.modules[name]
        yield

"""Triton kernels on a CPU: Triton's interpreter runs a kernel's Python on numpy arrays.

Triton means it for PyTorch's tensors, with TRITON_INTERPRET set before the first import. Here it
runs in place of jax_triton.triton_call, on kernels that were imported for compilation. Its bfloat16
is replaced: it truncates where a GPU rounds, and multiplies matrices of the bits.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np


def triton_call(
    *arrays, kernel, out_shape, grid, name, num_warps, num_stages, compute_capability, **constants
):
    """As jax_triton.triton_call. Numbers that the kernel does not write are NaN."""

    def run(*arrays):
        arrays = [np.array(x) for x in arrays]
        outputs = [np.full(x.shape, np.nan, x.dtype) for x in out_shape]
        interpret(kernel, grid, [*arrays, *outputs], constants)
        return outputs

    return jax.pure_callback(run, list(out_shape), *arrays)


def interpret(kernel, grid, arrays, constants):
    from triton.runtime import interpreter

    class Grid(interpreter.GridExecutor):
        """Without the copies between PyTorch's devices."""

        def _init_args_hst(self, args, kwargs):
            return args, kwargs

        def _restore_args_dev(self, *_):
            pass

    names = dict(zip(kernel.arg_names, map(pointer, arrays)))
    with interpreted_functions():
        function = interpreter.InterpretedFunction(kernel.fn)
        Grid(function.rewrite(), kernel.arg_names, tuple(grid))(**names, **constants)


class Bfloat16:
    """Operations of Triton's InterpreterBuilder, whose arrays hold bfloat16 as uint16."""

    @staticmethod
    def values(x) -> np.ndarray:
        return x.data.view(jnp.bfloat16) if str(x.dtype.scalar) == "bf16" else x.data

    def cast_impl(self, src, dst_type):
        from triton.runtime.interpreter import TensorHandle, _get_np_dtype

        target = jnp.bfloat16 if str(dst_type.scalar) == "bf16" else _get_np_dtype(dst_type)
        data = Bfloat16.values(src).astype(target)
        return TensorHandle(data.view(_get_np_dtype(dst_type)), dst_type.scalar)

    def create_dot(self, a, b, d, *_):
        from triton.runtime.interpreter import TensorHandle

        product = np.matmul(*(Bfloat16.values(x).astype(np.float32) for x in (a, b)))
        return TensorHandle(product + d.data, d.dtype.scalar)


def pointer(array: np.ndarray) -> SimpleNamespace:
    """What the interpreter reads of a PyTorch tensor."""
    dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}
    return SimpleNamespace(
        dtype=dtype[str(jnp.dtype(array.dtype))], data_ptr=lambda: array.ctypes.data
    )


@contextlib.contextmanager
def interpreted_functions() -> Iterator[None]:
    """Functions that kernels call are interpreted too; what the interpreter changes in Triton's
    modules, of which it leaves some, is as before afterwards.
    """
    import triton
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)  # converts arrays of one number, which numpy no longer does
        scope.set_attr(tensor, "__index__", lambda x: x.handle.data.item())

    changed = [tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base]
    before = [dict(vars(x)) for x in changed]
    call = lambda f, *args, **kwargs: InterpretedFunction(f.fn)(*args, **kwargs)
    try:
        with (
            mock.patch.object(triton.JITFunction, "__call__", call),
            mock.patch.object(interpreter, "_patch_lang_tensor", patch_tensor_and_index),
            mock.patch.object(InterpreterBuilder, "cast_impl", Bfloat16.cast_impl),
            mock.patch.object(InterpreterBuilder, "create_dot", Bfloat16.create_dot),
        ):
            yield
    finally:
        for owner, attributes in zip(changed, before, strict=True):
            for name in set(vars(owner)) - set(attributes):
                delattr(owner, name)
            for name, value in attributes.items():
                if vars(owner)[name] is not value:
                    setattr(owner, name, value)

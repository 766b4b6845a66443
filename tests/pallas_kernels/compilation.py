"""Compiles Triton kernels for GPUs that need not be there."""

import os
import tempfile
from unittest import mock

CAPABILITIES = [80, 89, 90]  # Ampere, Ada, Hopper


def build(kernel, pointers, constants, capability, **options):
    """The compiled kernel.

    pointers: {argument: its Triton type}. constants: {argument: its value}.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=kernel,
        signature=pointers | dict.fromkeys(constants, "constexpr"),
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    target = GPUTarget("cuda", capability, 32)
    # jax_triton, once imported, has set this to a path that is none
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
    ):
        return triton.compile(source, target=target, options=options)

"""Compiles Triton kernels for GPUs that need not be there."""

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
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

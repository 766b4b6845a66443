"""Rematerialisation policies: what of the forward pass is kept for the backward pass."""

from typing import Any

from t6jax.parallel.sequence import sequence_shards


def keep_sums(policy: Any) -> Any:
    """A rematerialisation policy that keeps sums over devices besides, in place of what each device
    had added.
    """
    return lambda primitive, *operands, **settings: (
        primitive.name == "psum" or policy(primitive, *operands, **settings)
    )


def keep_activations(rows: int, tokens: int) -> Any:
    """A rematerialisation policy: all that comes of this device's tokens is kept; gathered
    parameters are gathered again.

    So what other devices send of a sequence is kept, and what this one makes of all of it is made
    again: keys and values of the whole sequence do not shrink with the number of devices. Known by
    shape, B and T among an operand's axes or B T first: what is taken for a parameter by mistake is
    recomputed, and a parameter that has these sizes by chance is kept.
    """
    lengths = {tokens} | ({tokens // 2} if sequence_shards() > 1 else set())

    def of_tokens(x: Any) -> bool:
        shape = getattr(x, "shape", ())
        rest = set(shape[1:])
        return bool(shape) and (
            (shape[0] == rows and bool(rest & lengths)) or shape[0] == rows * tokens
        )

    def policy(primitive: Any, *operands: Any, **_: Any) -> bool:
        return any(of_tokens(x) for x in operands)

    return policy

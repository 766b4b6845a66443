"""Rematerialisation: which activations of a block the backward pass keeps, by their names.

Activations carry names where they are made (t6jax.ops.names). A block keeps those that the config's
`remat` lists here and makes the others again. Gathered parameters have no name: they are gathered
again, so that a device never holds those of all layers.
"""

from collections.abc import Callable
from typing import Any

import jax

from t6jax.ops import names
from t6jax.parallel.sequence import sequence_shards

# model.remat -> the names of what is kept
KEPT: dict[str, tuple[str, ...]] = {
    # whatever a gradient reads, except a few elementwise results that cost less than their memory
    "none": (
        *(names.RESIDUAL, names.NORMED, names.PROJECTION, names.GATHERED_SEQUENCE),
        *(names.QUERY, names.KEY, names.VALUE, names.SCORES, names.ATTENTION),
        *(names.ATTENTION_OUTPUT, names.GATE, names.UP, names.GATED),
    ),
    # products with weights, and attention's output
    "dots": (
        *(names.PROJECTION, names.KEY_VALUE_PROJECTION, names.ATTENTION),
        *(names.ATTENTION_OUTPUT, names.GATE, names.UP),
    ),
    # the block's input alone
    "full": (),
}
# Where devices split the sequence, these are of all of it and would not shrink with the number of
# devices: they are made again from what the devices sent of their tokens.
WHOLE_SEQUENCE = (names.KEY, names.VALUE, names.KEY_VALUE_PROJECTION)


def policy(remat: str) -> Callable[..., Any] | None:
    """The policy of jax.checkpoint for a value of model.remat.

    Args:
        remat: "none", "dots" or "full".

    Returns:
        What jax.checkpoint takes as its policy; None keeps nothing but the inputs.
    """
    kept = KEPT[remat]
    if not kept:
        return None
    if sequence_shards() > 1:
        kept = tuple(name for name in kept if name not in WHOLE_SEQUENCE)
    return jax.checkpoint_policies.save_only_these_names(*kept)


def checkpointed(f: Callable, remat: str, *, gathers: bool, in_loop: bool) -> Callable:
    """f under jax.checkpoint with the policy of `remat`.

    Args:
        f: a block, a function of its parameters and its input.
        remat: "none", "dots" or "full".
        gathers: whether f gathers parameters. If it does not, and devices do not split the
            sequence, "none" leaves f as it is.
        in_loop: whether f is the body of a loop. XLA cannot merge the recomputation with the
            forward pass there, and no barrier against it is needed.
    """
    if remat == "none" and not gathers and sequence_shards() == 1:
        return f
    return jax.checkpoint(f, policy=policy(remat), prevent_cse=not in_loop)

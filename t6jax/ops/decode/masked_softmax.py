"""The softmax of decoding: over the cached tokens that a new token sees."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def visible(lengths: Int[Array, "B"], new_tokens: int, max_length: int) -> Bool[Array, "B N M"]:
    """Which cached tokens each new token sees: new token n the first lengths - N + 1 + n."""
    limit = lengths[:, None] - new_tokens + 1 + jnp.arange(new_tokens)
    return jnp.arange(max_length) < limit[:, :, None]


def masked_softmax(
    logits: Float[Array, "B N H M"], seen: Bool[Array, "B N M"]
) -> tuple[Float[Array, "B N H M"], Float[Array, "B N H"]]:
    """(weights of the tokens seen, log-sum-exp of their logits); zeros and -inf for a row that sees
    nothing.
    """
    seen = seen[:, :, None, :]
    logits = jnp.where(seen, logits, -jnp.inf)
    highest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    p = jnp.where(seen, jnp.exp(logits - jnp.where(jnp.isfinite(highest), highest, 0)), 0)
    total = jnp.sum(p, axis=-1)
    return p / jnp.where(total > 0, total, 1)[..., None], jnp.log(total) + highest[..., 0]

"""How the next token is drawn from the logits."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t6jax.arguments import integer, number
from t6jax.fields import Range

_COUNT = Range(low=0)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
      temperature: of the softmax; 0 takes the likeliest token.
      top_k: draws only among the k likeliest tokens; 0: all.
      top_p: draws only among the likeliest tokens whose probabilities, summed from the top, reach
        p; 1: all.
      vocab_size: draws only ids below it; 0: all.

    Raises:
      InputError: a value is of the wrong type or outside its limits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    vocab_size: int = 0

    def __post_init__(self):
        checked = {
            "temperature": number("temperature", self.temperature, Range(low=0)),
            "top_k": integer("top_k", self.top_k, _COUNT),
            "top_p": number("top_p", self.top_p, Range(above=0, high=1)),
            "vocab_size": integer("vocab_size", self.vocab_size, _COUNT),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def kind(self) -> "Sampling":
        """What a compiled program depends on: all but the values of temperature and top_p, which
        `draw` takes as arrays.
        """
        return dataclasses.replace(
            self, temperature=float(self.temperature > 0), top_p=1.0 if self.top_p == 1 else 0.5
        )

    def draw(
        self,
        logits: Float[Array, "B V"],
        key: Key[Array, ""],
        temperature: Float[Array, ""] | float | None = None,
        top_p: Float[Array, ""] | float | None = None,
    ) -> Int[Array, "B"]:
        """One token for each row.

        Args:
          logits: [B, V].
          key: of the draw.
          temperature: replaces the attribute, where that is not 0.
          top_p: replaces the attribute, where that is not 1.
        """
        excluded = jnp.zeros(logits.shape[-1], bool)
        if self.vocab_size:
            excluded = jnp.arange(logits.shape[-1]) >= self.vocab_size
            logits = jnp.where(excluded, -jnp.inf, logits)
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # The likeliest token's logit is 0 and so stays finite however low the temperature; what is
        # excluded stays so however high it is.
        temperature = self.temperature if temperature is None else temperature
        temperature = jnp.maximum(temperature, jnp.finfo(logits.dtype).tiny)
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
        logits = jnp.where(excluded, -jnp.inf, logits)
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ranked = jnp.sort(logits, axis=-1, descending=True)
            p = jax.nn.softmax(ranked, axis=-1)
            # a token stays if those before it do not reach top_p yet; so the likeliest always stays
            kept = jnp.cumsum(p, axis=-1) - p < (self.top_p if top_p is None else top_p)
            least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)

"""The one interface of an attention mechanism: all that the model, the caches and the decode loop know of one."""

import abc
import dataclasses
from typing import Any, ClassVar, Protocol, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from t6jax.errors import InputError
from t6jax.layers import parameter, rms_norm
from t6jax.ops.rope import RoPE

HEAD_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class AttentionConfig(abc.ABC):
    """What every mechanism's settings have in common; a mechanism's own file adds its ranks and the like.

    num_heads: h. head_dim: d_h, even for RoPE's sake.
    head_norm: RMSNorm with weights over each head's output, epsilon 1e-5 (the published code's using_groupnorm).
    """

    name: ClassVar[str]

    num_heads: int
    head_dim: int
    head_norm: bool = False

    def __post_init__(self):
        self.require_positive("num_heads", "head_dim")
        if self.head_dim % 2:
            raise InputError(f"attention.head_dim must be even, since RoPE rotates pairs of features; got {self.head_dim}")

    def require_positive(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"attention.{key} must be an integer of at least 1; got {value!r}")

    @property
    @abc.abstractmethod
    def cached_numbers_per_token(self) -> int:
        """Numbers cached for each token in one layer (Table 1)."""

    @abc.abstractmethod
    def parameter_count(self, d_model: int) -> int:
        """Parameters of one attention layer (Table 1), head_norm's included."""

    @abc.abstractmethod
    def build(self, d_model: int, *, rope: RoPE, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> "Attention":
        """The mechanism's module."""


class Cache(Protocol):
    """What a mechanism keeps of the past tokens of B sequences: a pytree of arrays with room for max_length tokens."""

    max_length: int

    def append(self, entry: Any, starts: Int[Array, "B"]) -> Self:
        """Writes the tokens of entry behind the first starts[b] tokens of each sequence b."""
        ...


class Attention(nnx.Module):
    """One attention layer. A mechanism says how hidden states become a query and a cache entry, and attends with them.

    Queries and entries are pytrees of the mechanism's own making, with axes [B, T, ...]; entries are per token.
    """

    def __init__(self, config: AttentionConfig, d_model: int, *, rope: RoPE, dtype: DTypeLike, param_dtype: DTypeLike):
        self.config, self.rope, self.dtype = config, rope, dtype
        # W^O of eq. 3.3, starting at zero as in the published code
        shape = (config.num_heads, config.head_dim, d_model)
        self.w_o = parameter(jnp.zeros(shape, param_dtype), "heads", "head_dim", "d_model")
        if config.head_norm:
            self.head_norm = parameter(jnp.ones((config.head_dim,), param_dtype), "head_dim")

    def project(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> tuple[Any, Any]:
        """Hidden states to (query, entry), RoPE for the given positions already applied."""
        raise NotImplementedError

    def attend(self, query: Any, entry: Any, segment_ids: Int[Array, "B T"] | None) -> Float[Array, "B T H E"]:
        """Causal attention of a whole sequence over itself."""
        raise NotImplementedError

    def empty_cache(self, batch: int, max_length: int) -> Cache:
        """A cache with room for max_length tokens of each of batch sequences."""
        raise NotImplementedError

    def decode(self, query: Any, cache: Cache, lengths: Int[Array, "B"]) -> Float[Array, "B N H E"]:
        """Attention of N new tokens, already appended, over the cache; lengths include the new tokens."""
        raise NotImplementedError

    def output(self, heads: Float[Array, "B T H E"]) -> Float[Array, "B T d_model"]:
        """Concat(head_1, ..., head_h) W^O (eq. 3.3), the heads normed first where the config says so."""
        if self.config.head_norm:
            heads = rms_norm(heads, HEAD_NORM_EPSILON) * self.head_norm[...].astype(self.dtype)
        return jnp.einsum("bthe,hed->btd", heads, self.w_o[...].astype(self.dtype))

    def __call__(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T d_model"], Any]:
        """The layer over whole sequences: its output, and the cache entries of the tokens (for prefill)."""
        query, entry = self.project(x, positions)
        return self.output(self.attend(query, entry, segment_ids)), entry

    def extend(
        self, x: Float[Array, "B N d_model"], cache: Cache, lengths: Int[Array, "B"]
    ) -> tuple[Float[Array, "B N d_model"], Cache]:
        """The layer for N new tokens of each sequence against its cache; lengths include the new tokens."""
        starts = lengths - x.shape[1]
        query, entry = self.project(x, starts[:, None] + jnp.arange(x.shape[1]))
        cache = cache.append(entry, starts)
        return self.output(self.decode(query, cache, lengths)), cache

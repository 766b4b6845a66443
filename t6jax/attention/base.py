"""The one interface of an attention mechanism: all that the model, the caches and the decode loop
know of one.
"""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from t6jax.errors import InputError
from t6jax.fields import Range, check_fields
from t6jax.layers import parameter, uniform
from t6jax.ops.attention import Segments, causal_attention
from t6jax.ops.names import ATTENTION_OUTPUT
from t6jax.ops.residual import rms_norm
from t6jax.ops.rope import RoPE
from t6jax.ops.token_cache import TokenCache
from t6jax.parallel import placement, sequence

HEAD_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class AttentionConfig(abc.ABC):
    """What every mechanism's settings have in common; a mechanism's own file adds its ranks and the
    like.

    Keys are checked when an instance is made. A mechanism of one's own is a subclass that names its
    module, registered with t6jax.register.
    """

    name: ClassVar[str]
    module: ClassVar[type["Attention"]]
    rotated: ClassVar[str] = "head_dim"  # the key of the width that RoPE rotates

    num_heads: Annotated[int, Range(low=1), "h, the number of heads."]
    head_dim: Annotated[int, Range(low=1), "d_h, the width of a head's output."]
    head_norm: Annotated[
        bool,
        "RMSNorm with weights over each head's output, epsilon 1e-5 (the published code's "
        "using_groupnorm).",
    ] = False

    def __post_init__(self):
        check_fields(self, "model.attention")
        if getattr(self, self.rotated) % 2:
            raise InputError(
                f"model.attention.{self.rotated} must be even, since RoPE rotates pairs of "
                f"features; got {getattr(self, self.rotated)}"
            )

    @property
    def mixes_heads(self) -> bool:
        """Whether a head's numbers depend on another head's, so that devices cannot split the
        heads.
        """
        return False

    @property
    def query_dim(self) -> int:
        """Features of a head's query and key when it attends over a whole sequence."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """Features of a head's value when it attends over a whole sequence."""
        return self.head_dim

    @property
    @abc.abstractmethod
    def cached_numbers_per_token(self) -> int:
        """Numbers cached for each token in one layer (Table 1)."""

    @abc.abstractmethod
    def input_parameter_count(self, d_model: int) -> int:
        """Parameters of one attention layer up to the heads' outputs."""

    def parameter_count(self, d_model: int) -> int:
        """Parameters of one attention layer (Table 1): the mechanism's own, W^O's and
        head_norm's.
        """
        output = self.num_heads * self.head_dim * d_model
        return self.input_parameter_count(d_model) + output + self.head_norm * self.head_dim

    def build(
        self, d_model: int, *, rope: RoPE, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> "Attention":
        """The mechanism's module."""
        return self.module(self, d_model, Initializer(rngs, param_dtype), rope=rope, dtype=dtype)


class Cache(Protocol):
    """What a mechanism keeps of the past tokens of B sequences: a pytree of arrays with room for
    max_length tokens.
    """

    @property
    def max_length(self) -> int:
        """The tokens there is room for in each sequence."""
        ...

    def append(self, entry: Any, starts: Int[Array, "B"]) -> Self:
        """Writes the tokens of entry after the first starts[b] tokens of each sequence b."""
        ...


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Makes a module's parameters as they are before training; axes are the names that sharding
    goes by.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike

    def uniform(self, bound: float, shape: tuple[int, ...], *axes: str) -> nnx.Param:
        """U(-bound, bound)."""
        return parameter(uniform(self.rngs.params(), bound, shape, self.dtype), *axes)

    def linear(self, shape: tuple[int, ...], *axes: str) -> nnx.Param:
        """A linear map of its first axis, as the published code starts those it says nothing about:
        U(+- n_in**-0.5).
        """
        return self.uniform(shape[0] ** -0.5, shape, *axes)

    def full(self, value: float, shape: tuple[int, ...], *axes: str) -> nnx.Param:
        """The same number everywhere."""
        return parameter(jnp.full(shape, value, self.dtype), *axes)


class Attention(nnx.Module):
    """One attention layer. A mechanism says how hidden states become a query and a cache entry, and
    attends with them.

    Queries and entries are pytrees of the mechanism's own making, with axes [B, T, ...]; entries
    are per token.
    """

    def __init__(
        self,
        config: AttentionConfig,
        d_model: int,
        init: Initializer,
        *,
        rope: RoPE,
        dtype: DTypeLike,
    ):
        self.config, self.rope, self.dtype = config, rope, dtype
        # W^O of eq. 3.3, starting at zero as in the published code
        self.w_o = init.full(
            0, (config.num_heads, config.head_dim, d_model), "heads", "head_dim", "d_model"
        )
        if config.head_norm:
            self.head_norm = init.full(1, (config.head_dim,), "head_dim")

    def project(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> tuple[Any, Any]:
        """Hidden states to (query, entry) of tokens at the given positions."""
        raise NotImplementedError

    def attend(
        self,
        query: Any,
        entry: Any,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | Segments | None,
    ) -> Float[Array, "B T H E"]:
        """Causal attention of a whole sequence over itself.

        entry, positions and segment_ids are of the whole sequence; where devices split it, query is
        of this device's tokens (t6jax.parallel.sequence.local_tokens), and heads are this device's.
        """
        raise NotImplementedError

    def decode(self, query: Any, cache: Cache, lengths: Int[Array, "B"]) -> Float[Array, "B N H E"]:
        """Attention of N new tokens, already appended, over the cache; lengths include the new
        tokens.
        """
        raise NotImplementedError

    def causal_attention(
        self,
        query: Float[Array, "B T H D"],
        key: Float[Array, "B S G D"],
        value: Float[Array, "B S G E"],
        segment_ids: Int[Array, "B S"] | Segments | None,
    ) -> Float[Array, "B T H E"]:
        """Causal attention of dense arrays; where devices split the sequence, of their chunks."""
        chunks = sequence.local_chunks() if sequence.sequence_shards() > 1 else None
        return causal_attention(query, key, value, segment_ids=segment_ids, chunks=chunks)

    def empty_cache(self, batch: int, max_length: int) -> Cache:
        """A cache with room for max_length tokens of each of batch sequences."""
        return TokenCache(self.empty_entry(batch, max_length))

    def empty_entry(self, batch: int, tokens: int) -> Any:
        """Zeros in the shapes of what `project` says is cached of that many tokens."""
        x = jax.ShapeDtypeStruct((batch, tokens, self.w_o.shape[-1]), self.dtype)
        positions = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
        shapes = jax.eval_shape(lambda x, positions: self.project(x, positions)[1], x, positions)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def weight(self, param: nnx.Param) -> Array:
        """A parameter in the computation's dtype."""
        return param[...].astype(self.dtype)

    def output(self, heads: Float[Array, "B T H E"]) -> Float[Array, "B T d_model"]:
        """Concat(head_1, ..., head_h) W^O (eq. 3.3), the heads normed first where the config says
        so.
        """
        if self.config.head_norm:
            heads = rms_norm(heads, HEAD_NORM_EPSILON, self.head_norm[...])
        product = jnp.einsum("bthe,hed->btd", heads, self.weight(self.w_o))
        return checkpoint_name(placement.psum_over(self.w_o, "heads", product), ATTENTION_OUTPUT)

    def __call__(
        self,
        x: Float[Array, "B T d_model"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | Segments | None = None,
    ) -> tuple[Float[Array, "B T d_model"], Any]:
        """The layer over whole sequences: its output, and the cache entries of the tokens (for
        prefill).
        """
        query, entry = self.project(x, positions)
        # devices that split the sequence gather its cache entries, not keys and values
        whole = sequence.gather_sequence((entry, positions, segment_ids))
        return self.output(self.attend(query, *whole)), entry

    def extend(
        self, x: Float[Array, "B N d_model"], cache: Cache, lengths: Int[Array, "B"]
    ) -> tuple[Float[Array, "B N d_model"], Cache]:
        """The layer for N new tokens of each sequence against its cache; lengths include the new
        tokens.
        """
        starts = lengths - x.shape[1]
        query, entry = self.project(x, starts[:, None] + jnp.arange(x.shape[1]))
        cache = cache.append(entry, starts)
        return self.output(self.decode(query, cache, lengths)), cache

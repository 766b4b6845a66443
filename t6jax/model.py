"""The T6 transformer (section 3.5): embedding, L blocks stacked and scanned, tied head."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from t6jax.attention import Cache
from t6jax.config import ModelConfig
from t6jax.errors import InputError
from t6jax.layers import SwiGLU, parameter, uniform
from t6jax.ops.attention import Segments
from t6jax.ops.cross_entropy import (
    VocabShard,
    cross_entropy,
    mean_cross_entropy,
    sharded_cross_entropy,
)
from t6jax.ops.documents import model_arguments
from t6jax.ops.precision import accumulator
from t6jax.ops.residual import add_norm, rms_norm
from t6jax.ops.rope import RoPE
from t6jax.parallel.blocks import run_blocks
from t6jax.parallel.gather import embedding_lookup, gathered
from t6jax.parallel.placement import mesh_axis
from t6jax.parallel.sequence import local_tokens

# Tokens whose logits the loss holds at a time: enough for a matrix product of full speed.
LOGIT_TOKENS = 8192


class Block(nnx.Module):
    """x <- x + Attention(RMSNorm(x)); x <- x + SwiGLU(RMSNorm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        rope = RoPE(config.rope_base, config.rope_table_dtype)
        self.attention = config.attention.build(config.d_model, rope=rope, rngs=rngs, **dtypes)
        self.mlp = SwiGLU(config.d_model, config.swiglu_width, rngs=rngs, **dtypes)

    def __call__(
        self,
        x: Float[Array, "B T d_model"],
        update: Float[Array, "B T d_model"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | Segments | None,
    ) -> tuple[Float[Array, "B T d_model"], Float[Array, "B T d_model"], Any]:
        """The block over whole sequences. Each sum is taken together with the norm that reads it.

        Args:
            x: the residual stream before the last update.
            update: what the block before adds to x.
            positions: of the tokens.
            segment_ids: attention stays inside each segment.

        Returns:
            (x after attention, what this block's MLP adds to it, the tokens' cache entries).
        """
        x, normed = add_norm(x, update)
        update, entry = self.attention(normed, positions, segment_ids)
        x, normed = add_norm(x, update)
        return x, self.mlp(normed), entry

    def extend(
        self, x: Float[Array, "B N d_model"], cache: Cache, lengths: Int[Array, "B"]
    ) -> tuple[Float[Array, "B N d_model"], Cache]:
        """The block for N new tokens of each sequence against its cache.

        Args:
            x: the residual stream.
            cache: of this layer.
            lengths: of the sequences, the new tokens included.

        Returns:
            (the residual stream after the block, the cache with the new tokens).
        """
        update, cache = self.attention.extend(rms_norm(x), cache, lengths)
        x = x + update
        return x + self.mlp(rms_norm(x)), cache


class T6(nnx.Module):
    """model(tokens [B, T]) -> logits [B, T, V], float32.

    The parameters of the blocks are stacked along a leading axis of layers, so that compile time
    does not grow with depth. `unstacked` gives the form that decodes fastest.

    On a mesh (t6jax.parallel) B, T, V and the parameters are what a device has of them.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, ModelConfig):
            raise InputError(
                f"T6 takes a ModelConfig (ModelConfig.from_dict makes one); got {config!r}"
            )
        self.config = config
        shape = (config.vocab_size, config.d_model)
        embedding = uniform(rngs.params(), config.d_model**-0.5, shape, config.param_dtype)
        self.embedding = parameter(embedding, "vocab", "d_model")
        make = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))
        self.blocks = make(jax.random.split(rngs.params(), config.num_layers))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the token that follows each token.

        Args:
            tokens: ids below vocab_size.
            positions: of the tokens, default 0, 1, ...
            segment_ids: attention stays inside each segment, default one for each row.

        Returns:
            Logits, float32 or wider.
        """
        normed, _ = self._forward(tokens, positions, segment_ids)
        return self._head(normed)

    def loss(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, ""]:
        """The mean cross-entropy of the targets, in nats.

        It holds the logits of one slice of T at a time. Arguments are those of `__call__`; targets
        are the tokens that follow.
        """
        normed, _ = self._forward(tokens, positions, segment_ids, unroll=self.config.unroll)
        return mean_cross_entropy(
            normed,
            gathered(self.embedding),
            targets,
            _num_slices(*tokens.shape),
            self._vocab_shard(),
        )

    def nats(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T"]:
        """The cross-entropy of each target, in nats, float32. Arguments are those of `loss`."""
        logits = self(tokens, positions=positions, segment_ids=segment_ids)
        shard = self._vocab_shard()
        if shard is None:
            return cross_entropy(logits, targets)
        return sharded_cross_entropy(logits, targets, shard)[0]

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | Segments | None = None,
    ) -> Float[Array, "B T d_model"]:
        """The normed hidden state of each token, from which `logits` computes its logits.

        Arguments are those of `__call__`; segment_ids may also be Segments.
        """
        return self._forward(tokens, positions, segment_ids)[0]

    def logits(self, x: Float[Array, "B T d_model"]) -> Float[Array, "B T V"]:
        """Logits of the token that follows each, from hidden states that `hidden` gave."""
        return self._head(x)

    def empty_caches(self, batch: int, max_length: int) -> tuple[Cache, ...]:
        """A cache for each layer, with room for max_length tokens of each of batch sequences."""
        return tuple(block.attention.empty_cache(batch, max_length) for block in self._layers())

    def prefill(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], caches: tuple[Cache, ...]
    ) -> tuple[Float[Array, "B V"], tuple[Cache, ...]]:
        """Runs prompts into empty caches.

        Args:
            tokens: the prompts, padded on the right to T.
            lengths: valid tokens of each prompt, at least 1.
            caches: from empty_caches.

        Returns:
            (logits of the token that follows each prompt, the caches).
        """
        normed, entries = self._forward(tokens, None, None)
        starts = jnp.zeros_like(lengths)
        caches = tuple(
            cache.append(entry, starts) for cache, entry in zip(caches, entries, strict=True)
        )
        last = jnp.take_along_axis(normed, (lengths - 1)[:, None, None], axis=1)
        return self._head(last)[:, 0], caches

    def extend(
        self, tokens: Int[Array, "B N"], lengths: Int[Array, "B"], caches: tuple[Cache, ...]
    ) -> tuple[Float[Array, "B N V"], tuple[Cache, ...]]:
        """Runs N new tokens of each sequence against the caches.

        Args:
            tokens: the new tokens.
            lengths: of the sequences, the new tokens included.
            caches: of the tokens before them.

        Returns:
            (logits of the token that follows each new one, the caches with the new tokens).
        """
        x, extended = self._embed(tokens), []
        for block, cache in zip(self._layers(), caches, strict=True):
            x, cache = block.extend(x, cache, lengths)
            extended.append(cache)
        return self._head(rms_norm(x)), tuple(extended)

    def unstacked(self) -> "T6":
        """The same model for decoding: a module for each layer, parameters in config.dtype.

        A decode step reads every parameter once: half precision halves that, and slices of stacked
        arrays would be copied.
        """
        model = self.in_compute_dtype()
        model.blocks = nnx.List(model._layers())
        return model

    def in_compute_dtype(self) -> "T6":
        """The same model with its parameters cast to config.dtype."""
        graph, state = nnx.split(self)
        return nnx.merge(graph, jax.tree.map(lambda x: x.astype(self.config.dtype), state))

    def _layers(self) -> list[Block]:
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        graph, state = nnx.split(self.blocks)
        return [nnx.merge(graph, layer) for layer in _per_layer(state, self.config.num_layers)]

    def _forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None,
        segment_ids: Int[Array, "B T"] | Segments | None,
        *,
        unroll: bool = False,
    ) -> tuple[Float[Array, "B T d_model"], list[Any]]:
        """(the normed hidden states after the last block, the cache entries of each layer).

        With unroll there may be no cache entries: parameters that are gathered are then prefetched,
        and only the hidden states are handed from block to block.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self._embed(tokens)
        update = jnp.zeros_like(x)
        if isinstance(self.blocks, nnx.List):
            entries = []
            for block in self.blocks:
                layer: Any = block
                x, update, entry = layer(x, update, positions, segment_ids)
                entries.append(entry)
            return add_norm(x, update)[1], entries

        graph, state = nnx.split(self.blocks)

        def block(params: nnx.State, carry: tuple[Array, Array]) -> tuple[tuple, Any]:
            layer: Any = nnx.merge(graph, params)
            x, update, entry = layer(*carry, positions, segment_ids)
            return (x, update), entry

        (x, update), entries = run_blocks(
            block,
            state,
            (x, update),
            dtype=self.config.dtype,
            remat=self.config.remat,
            unroll=unroll,
        )
        entries = [] if entries is None else _per_layer(entries, self.config.num_layers)
        return add_norm(x, update)[1], entries

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T d_model"]:
        return embedding_lookup(self.embedding, tokens, self.config.dtype)

    def _head(self, normed: Float[Array, "B T d_model"]) -> Float[Array, "B T V"]:
        """Logits, of this device's shard if devices split the vocabulary."""
        table = gathered(self.embedding, self.config.dtype)
        return jnp.einsum(
            "btd,vd->btv", normed, table, preferred_element_type=accumulator(table.dtype)
        )

    def _vocab_shard(self) -> VocabShard | None:
        """How devices split the vocabulary; None: not at all."""
        axis = mesh_axis(self.embedding, "vocab")
        return None if axis is None else VocabShard(axis, self.config.vocab_size)


def _num_slices(batch: int, tokens: int) -> int:
    """The number of equal slices of the sequence whose logits the loss holds at a time, each with
    at least LOGIT_TOKENS tokens of the batch.
    """
    return math.gcd(tokens, 2 ** max(0, int(math.log2(max(1, batch * tokens / LOGIT_TOKENS)))))


def _per_layer(stacked: Any, num_layers: int) -> list[Any]:
    """One pytree for each layer, from a pytree whose arrays have a leading axis of layers."""
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(num_layers)]


def model_inputs(
    windows: Int[Array, "B window"], document_start: int | None
) -> tuple[Int[Array, "B T"], Int[Array, "B T"], dict[str, Int[Array, "B T"]]]:
    """What `T6.loss` and `T6.nats` take of windows of T + 1 tokens.

    Args:
        windows: rows of tokens; each but the first is a target.
        document_start: the token at which attention stops and positions restart; None: nowhere.

    Returns:
        (tokens, targets, the keyword arguments), all T of each row or, where devices split the
        sequences, this device's.
    """
    tokens, targets = windows[:, :-1], windows[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    arguments = {"positions": positions} | model_arguments(tokens, document_start)
    return local_tokens((tokens, targets, arguments))


def abstract(config: ModelConfig) -> T6:
    """The model with shapes in place of arrays: nothing is computed or allocated."""
    return nnx.eval_shape(lambda: T6(config, rngs=nnx.Rngs(0)))

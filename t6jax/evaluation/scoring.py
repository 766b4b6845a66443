"""Log-likelihoods of continuations, for many requests at once.

Requests are packed (`t6jax.evaluation.packing`), batched over all local devices, and share the
computation of equal contexts.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from t6jax.evaluation.packing import (
    PackedBatch,
    Request,
    batches,
    group_by_context,
    pack,
    to_arrays,
    truncate,
)
from t6jax.model import T6
from t6jax.ops.attention import Segments

# The tokens of a batch on each device, by kind of device: enough to keep it busy.
BATCH_TOKENS = {"gpu": 32768, "tpu": 32768, "cpu": 4096}
# The scored tokens whose logits, float32 [., V], are in memory at a time.
LOGITS_CHUNK = 2048
DEVICES = "devices"  # the name of the mesh's one axis


class Score(NamedTuple):
    """The score of a request.

    Attributes:
      log_likelihood: the natural log-likelihood of all tokens of the continuation together.
      greedy: whether each of these tokens was the likeliest.
    """

    log_likelihood: float
    greedy: bool


class Scorer:
    """Scores requests with a model.

    The score of a request is that of a forward pass over its tokens alone, up to rounding, whatever
    other requests are in its batch. The parameters are kept in the model's computation dtype, one
    copy on each local device.
    """

    def __init__(
        self, model: T6, *, max_length: int | None = None, batch_tokens: int | None = None
    ):
        """Copies the parameters to the devices.

        Args:
          model: the model.
          max_length: the input tokens of a request; a longer context loses its beginning. Default:
            the model's context_length.
          batch_tokens: the tokens of a batch on each device. Default: by the kind of device.
        """
        self.max_length = model.config.context_length if max_length is None else max_length
        self.batch_tokens = (
            BATCH_TOKENS.get(jax.default_backend(), 4096) if batch_tokens is None else batch_tokens
        )
        devices = jax.local_devices()
        self._mesh = jax.make_mesh(
            (len(devices),), (DEVICES,), axis_types=(AxisType.Auto,), devices=devices
        )
        self._graph, state = nnx.split(_cast(model))
        self.params = jax.device_put(state, NamedSharding(self._mesh, PartitionSpec()))
        self._program = _program(self._graph, self._mesh)

    @property
    def model(self) -> T6:
        """The model with the parameters that it scores with."""
        return nnx.merge(self._graph, self.params)

    @property
    def compiled_programs(self) -> int:
        """The number of shapes that the scoring program has been compiled for."""
        return self._program._cache_size()

    def __call__(self, requests: Sequence[Request]) -> list[Score]:
        """The scores of the requests, in order."""
        scores = dict(pair for finished in self.stream(requests) for pair in finished)
        return [scores[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Score]]]:
        """Yields the (index of a request, its score) of one batch at a time, longest first.

        Raises:
          InputError: for a continuation that is empty or longer than max_length.
        """
        groups = group_by_context([truncate(request, self.max_length) for request in requests])
        launched: list[tuple[PackedBatch, tuple[Array, Array]]] = []
        for rows in pack(groups, self.batch_tokens):
            for batch in batches(rows, self.batch_tokens, self._mesh.size):
                # the next batch is launched before the last one's results are read, so that the
                # device does not wait for the host
                packed = to_arrays(batch, self._mesh.size)
                launched.append((packed, self._launch(packed)))
                if len(launched) > 1:
                    yield _scores(*launched.pop(0))
        for last in launched:
            yield _scores(*last)

    def _launch(self, packed: PackedBatch) -> tuple[Array, Array]:
        *inputs, _ = packed
        sharded = NamedSharding(self._mesh, PartitionSpec(DEVICES))
        return self._program(self.params, *jax.device_put(inputs, sharded))


def _scores(packed: PackedBatch, result: tuple[Array, Array]) -> list[tuple[int, Score]]:
    """Sums the log-likelihoods of the tokens over each request, in float64."""
    log_likelihoods, likeliest = (np.asarray(x) for x in result)
    scores = []
    for device, requests in enumerate(packed.requests):
        if requests:
            ends = np.cumsum([length for _, length in requests])
            starts = np.append(0, ends[:-1])
            tokens = log_likelihoods[device, : ends[-1]].astype(np.float64)
            sums = np.add.reduceat(tokens, starts)
            greedy = np.logical_and.reduceat(likeliest[device, : ends[-1]], starts)
            scores += [
                (request, Score(total, all_likeliest))
                for (request, _), total, all_likeliest in zip(
                    requests, sums.tolist(), greedy.tolist(), strict=True
                )
            ]
    return scores


def _program(graph: nnx.GraphDef[T6], mesh: jax.sharding.Mesh) -> Any:
    """The compiled (parameters, PackedBatch without requests) -> results for [D, S] scored tokens.

    The results are the log-likelihood of each scored token and whether it is the likeliest.
    """

    def score(
        params: Any,
        tokens: Int[Array, "rows T"],
        positions: Int[Array, "rows T"],
        own: Int[Array, "rows T"],
        context: Int[Array, "rows T"],
        logit_index: Int[Array, "1 S"],
        targets: Int[Array, "1 S"],
        count: Int[Array, "1"],
    ) -> tuple[Float[Array, "1 _"], Bool[Array, "1 _"]]:
        model = nnx.merge(graph, params)
        x = model.hidden(tokens, positions=positions, segment_ids=Segments(own, context))
        log_likelihoods, likeliest = _score_tokens(
            model, x.reshape(-1, x.shape[-1]), logit_index[0], targets[0], count[0]
        )
        return log_likelihoods[None], likeliest[None]

    replicated, sharded = PartitionSpec(), PartitionSpec(DEVICES)
    # Devices exchange nothing. Each runs the program on its own rows, with as many chunks of logits
    # as these need.
    return jax.jit(
        jax.shard_map(
            score,
            mesh=mesh,
            in_specs=(replicated, *[sharded] * 7),
            out_specs=sharded,
            check_vma=False,
        )
    )


def _score_tokens(
    model: T6,
    x: Float[Array, "tokens d_model"],
    logit_index: Int[Array, "S"],
    targets: Int[Array, "S"],
    count: Int[Array, ""],
) -> tuple[Float[Array, "_"], Bool[Array, "_"]]:
    """Scores the first `count` targets from the hidden states x, LOGITS_CHUNK at a time.

    Returns:
      The log-likelihoods of the targets, and whether each is the likeliest; both padded to whole
      chunks.
    """
    size = min(LOGITS_CHUNK, len(targets))
    padding = -len(targets) % size
    logit_index, targets = (jnp.pad(x, (0, padding)) for x in (logit_index, targets))

    def score_chunk(carry):
        start, log_likelihoods, likeliest = carry
        index, wanted = (
            jax.lax.dynamic_slice_in_dim(x, start, size) for x in (logit_index, targets)
        )
        logits = model.logits(x[index][None])[0]
        of_target = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        return (
            start + size,
            jax.lax.dynamic_update_slice_in_dim(
                log_likelihoods, of_target - jax.nn.logsumexp(logits, axis=1), start, 0
            ),
            jax.lax.dynamic_update_slice_in_dim(
                likeliest, jnp.argmax(logits, axis=1) == wanted, start, 0
            ),
        )

    shape = targets.shape
    carry = (jnp.zeros((), jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool))
    _, log_likelihoods, likeliest = jax.lax.while_loop(
        lambda carry: carry[0] < count, score_chunk, carry
    )
    return log_likelihoods, likeliest


@nnx.jit
def _cast(model: T6) -> T6:
    return model.in_compute_dtype()

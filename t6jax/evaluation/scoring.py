"""Log-likelihoods of continuations, for many requests at once: packed, batched over all devices,
contexts shared.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from t6jax.evaluation.packing import Arrays, Request, arrays, batches, grouped, in_rows, truncated
from t6jax.model import T6
from t6jax.ops.attention import Segments

# tokens that a device takes at a time: enough to fill it
BATCH_TOKENS = {"gpu": 32768, "tpu": 32768, "cpu": 4096}
# scored tokens whose logits, float32 [., V], are in memory at a time
CHUNK = 2048
DEVICES = "devices"


class Score(NamedTuple):
    """log_likelihood: natural, of all tokens of the continuation together. greedy: whether each was
    the likeliest.
    """

    log_likelihood: float
    greedy: bool


class Scorer:
    """Scores requests under a model.

    max_length: of the input tokens of a request, default the model's context_length; a longer
        context loses its beginning.
    batch_tokens: tokens that a device takes at a time, default by the kind of device.

    A request's score is that of a forward pass over its tokens alone, to rounding, whatever it is
    batched with. The parameters are kept in the computation's dtype, a copy on each device.
    """

    def __init__(
        self, model: T6, *, max_length: int | None = None, batch_tokens: int | None = None
    ):
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
        """The model with the parameters that it is scored with."""
        return nnx.merge(self._graph, self.params)

    @property
    def compiled_programs(self) -> int:
        """Shapes that the scoring program has been compiled for."""
        return self._program._cache_size()

    def __call__(self, requests: Sequence[Request]) -> list[Score]:
        """The score of each request, in order."""
        scores = dict(pair for finished in self.stream(requests) for pair in finished)
        return [scores[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Score]]]:
        """(index of the request, its score), a batch at a time, longest first.

        Raises InputError for a continuation that is empty or exceeds max_length.
        """
        groups = grouped([truncated(request, self.max_length) for request in requests])
        waiting: list[tuple[Arrays, tuple[Array, Array]]] = []
        for rows in in_rows(groups, self.batch_tokens) if groups else ():
            for batch in batches(rows, self.batch_tokens, self._mesh.size):
                # each batch is launched before the one before it is looked at, so that the device
                # need not wait for the host
                packed = arrays(batch, self._mesh.size)
                waiting.append((packed, self._launch(packed)))
                if len(waiting) > 1:
                    yield _finished(*waiting.pop(0))
        for last in waiting:
            yield _finished(*last)

    def _launch(self, packed: Arrays) -> tuple[Array, Array]:
        split = NamedSharding(self._mesh, PartitionSpec(DEVICES))
        return self._program(self.params, *jax.device_put(packed[:-1], split))


def _finished(packed: Arrays, result: tuple[Array, Array]) -> list[tuple[int, Score]]:
    nats, likeliest = (np.asarray(x) for x in result)
    finished = []
    for device, requests in enumerate(packed.requests):
        if requests:
            ends = np.cumsum([length for _, length in requests])
            starts = np.append(0, ends[:-1])
            sums = np.add.reduceat(nats[device, : ends[-1]].astype(np.float64), starts)
            greedy = np.logical_and.reduceat(likeliest[device, : ends[-1]], starts)
            scored = zip(requests, sums.tolist(), greedy.tolist(), strict=True)
            finished += [
                (i, Score(total, all_likeliest)) for (i, _), total, all_likeliest in scored
            ]
    return finished


def _program(graph: nnx.GraphDef[T6], mesh: jax.sharding.Mesh) -> Callable:
    """(params, Arrays without requests) -> (log-likelihood of each scored token [D, S], whether it
    is the likeliest).
    """

    def score(
        params, tokens, positions, own, context, index, target, count
    ) -> tuple[Float[Array, "1 S"], Bool[Array, "1 S"]]:
        model = nnx.merge(graph, params)
        x = model.hidden(tokens, positions=positions, segment_ids=Segments(own, context))
        nats, likeliest = _scored(model, x.reshape(-1, x.shape[-1]), index[0], target[0], count[0])
        return nats[None], likeliest[None]

    every, split = PartitionSpec(), PartitionSpec(DEVICES)
    # nothing is sent between devices: each runs the program on its rows, with as many chunks of
    # logits as those need
    return jax.jit(
        jax.shard_map(
            score, mesh=mesh, in_specs=(every, *[split] * 7), out_specs=split, check_vma=False
        )
    )


def _scored(
    model: T6,
    x: Float[Array, "BT d_model"],
    index: Int[Array, "S"],
    target: Int[Array, "S"],
    count: Int[Array, ""],
) -> tuple[Float[Array, "S"], Bool[Array, "S"]]:
    """Log-likelihoods of the first `count` targets from the hidden states at their places, CHUNK at
    a time.
    """
    room = -(-len(index) // CHUNK) * CHUNK if len(index) > CHUNK else len(index)
    size = min(CHUNK, room)
    index, target = (jnp.pad(a, (0, room - len(a))) for a in (index, target))

    def one(carry):
        start, nats, likeliest = carry
        places, wanted = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (index, target))
        logits = model.logits(x[places][None])[0]
        at_target = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        new = at_target - jax.nn.logsumexp(logits, axis=1)
        put = lambda a, update: jax.lax.dynamic_update_slice_in_dim(a, update, start, 0)
        return start + size, put(nats, new), put(likeliest, jnp.argmax(logits, axis=1) == wanted)

    start = (jnp.zeros((), jnp.int32), jnp.zeros(room, jnp.float32), jnp.zeros(room, bool))
    _, nats, likeliest = jax.lax.while_loop(lambda carry: carry[0] < count, one, start)
    return nats, likeliest


@nnx.jit
def _cast(model: T6) -> T6:
    """The same model, its parameters cast once."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(model.config.dtype), state))

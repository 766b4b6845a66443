"""Documents in a window: attention stops at their borders, positions restart there."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from t6jax import T6
from t6jax.ops.documents import document_segments, model_arguments


def test_segments_and_positions():
    tokens = jnp.array([[5, 5, 9, 1, 9, 9, 2], [9, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]])
    segment_ids, positions = document_segments(tokens, 9)
    assert segment_ids.tolist() == [[0, 0, 1, 1, 2, 3, 3], [1] * 7, [0] * 7]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 0, 1], [*range(7)], [*range(7)]]
    assert model_arguments(tokens, None) == {}


def test_a_document_in_a_window_has_the_logits_that_it_has_alone(tiny_model_config):
    model = T6(tiny_model_config, rngs=nnx.Rngs(0))
    # the output projections start at zero: give them something to pass on
    state = nnx.state(model)
    draw = np.random.default_rng(0)
    noise = lambda x: x + 0.1 * jnp.asarray(draw.standard_normal(x.shape), x.dtype)
    nnx.update(model, nnx.to_pure_dict(nnx.map_state(lambda _, v: v.replace(noise(v[...])), state)))
    run = nnx.jit(lambda model, tokens, **arguments: model(tokens, **arguments))
    documents = [draw.integers(0, 60, n) for n in (7, 7, 7)]  # of one length, for one compilation
    tokens = jnp.asarray(np.concatenate([np.array([60, *d]) for d in documents]))[None]
    masked = run(model, tokens, **model_arguments(tokens, 60))
    plain = run(model, tokens)
    start = 0
    for d in documents:
        stop = start + 1 + len(d)
        alone = run(model, tokens[:, start:stop])
        np.testing.assert_allclose(
            masked[:, start:stop], alone, rtol=0, atol=2e-5 * float(jnp.abs(alone).max())
        )
        assert start == 0 or float(jnp.abs(plain[:, start:stop] - alone).max()) > 1e-2
        start = stop

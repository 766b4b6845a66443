"""Every mechanism with every flag against its equations, written out in float64 with NumPy.

The layer's other tests compare it with itself: decoding with the forward pass, half precision with
float32.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.attention.cases import CASES, D_MODEL, arange_positions, build, hidden_states

EPSILON = np.finfo(np.float32).eps


def norm(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def rope(x):
    """x [B, T, ..., D] at positions 0, 1, ...: features i, i + D/2 turn together (appendix H.5)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
    angle = angle.reshape(x.shape[1], *[1] * (x.ndim - 3), half)
    one, two = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([one * cos + two * sin, two * cos - one * sin], -1)


ACTIVATIONS = {
    "none": lambda a: a,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),  # over the heads
}


def tensor_product(x, config, w, name, rotated):
    """Q, K or V of eq. 3.1, of order 2 or 3, with the variants of appendices A and I."""

    def factor(letter, name):
        weight = w[f"w_{letter}_{name}"]
        same = np.broadcast_to(weight, (*x.shape[:2], *weight.shape)) if weight.ndim == 2 else None
        return np.einsum("btd,drs->btrs", x, weight) if same is None else same

    a = ACTIVATIONS[getattr(config, f"activation_{name}", "none")](factor("a", name))
    source = "k" if name == "v" and config.shared_kv_b else name
    b = factor("b", source)
    b = rope(b) if rotated else b
    if f"w_c_{source}" in w:
        c = factor("c", source)
        b = np.einsum("btri,btrj->btrji", b, c).reshape(*b.shape[:3], -1)  # vec stacks columns
    return np.einsum("btrh,btre->bthe", a, b) / a.shape[2]


def queries_keys_values(x, config, w):
    if config.name.startswith("tpa"):
        k, v = (tensor_product(x, config, w, name, name == "k") for name in "kv")
        if "w_q" in w:
            return rope(np.einsum("btd,dhe->bthe", x, w["w_q"])), k, v
        return tensor_product(x, config, w, "q", True), k, v
    if config.name == "mla":
        c_q = norm(x @ w["w_dq"], w["q_norm"], 1e-6)
        c_kv = norm(x @ w["w_dkv"], w["kv_norm"], 1e-6)
        up = lambda c, name: np.einsum("btc,che->bthe", c, w[name])
        k_r = np.repeat(rope(x @ w["w_kr"])[:, :, None], config.num_heads, 2)
        q = np.concatenate([up(c_q, "w_uq"), rope(up(c_q, "w_qr"))], -1)
        return q, np.concatenate([up(c_kv, "w_uk"), k_r], -1), up(c_kv, "w_uv")
    if config.name == "mfa":
        q = np.einsum("btc,che->bthe", x @ w["w_dq"], w["w_uq"])
    else:
        q = np.einsum("btd,dhe->bthe", x, w["w_q"])
    k, v = (np.einsum("btd,dge->btge", x, w[name]) for name in ("w_k", "w_v"))
    shared_by = config.num_heads // k.shape[2]
    return rope(q), *(np.repeat(y, shared_by, 2) for y in (rope(k), v))


def layer(x, config, w):
    q, k, v = queries_keys_values(x, config, w)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    p = np.exp(scores) * np.tril(np.ones(scores.shape[-2:]))
    heads = np.einsum("bhts,bshe->bthe", p / p.sum(-1, keepdims=True), v)
    if config.head_norm:
        heads = norm(heads, w["head_norm"], 1e-5)
    return np.einsum("bthe,hed->btd", heads, w["w_o"])


def check(config, tokens):
    graph, state = nnx.split(build(config))
    # small enough for the norms' epsilons to count
    x = (0.02 if config.name == "mla" else 1) * hidden_states(2, tokens)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, arange_positions(x))[0])
    weights = {name: np.asarray(p, np.float64) for name, p in nnx.to_pure_dict(state).items()}
    want = layer(np.asarray(x, np.float64), config, weights)
    # sums of d_model, ranks, features, tokens, heads x features in turn; the angles' rounding
    bound = 4 * EPSILON * (24 + 3 + 10 + tokens + 30) * np.abs(want).max()
    np.testing.assert_allclose(run(state, x), want, rtol=0, atol=bound)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_the_layer_is_its_equations(config):
    check(config, 5)


@pytest.mark.parametrize("name", ["tpa", "tpa_kvonly"])
def test_one_product_for_all_factors_gives_the_equations_too(name):
    assert D_MODEL <= 2 * 13  # enough tokens for the factor maps to be joined
    check(CASES[name], 13)


def test_what_a_joined_product_caches_is_what_is_cached_of_each_factor():
    module, x = build(CASES["tpa"]), hidden_states(2, 13)
    run = jax.jit(
        lambda x: (module(x, arange_positions(x))[1], module.entry(x, arange_positions(x)))
    )
    joined, each = run(x)
    for one, other in zip(joined, each, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=64 * EPSILON * np.abs(other).max())

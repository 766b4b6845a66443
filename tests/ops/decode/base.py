"""What every implementation of t6jax.decode is held to: Algorithm 1 in float64.

tests/ops/decode and tests/gpu derive a class for each implementation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t6jax
from t6jax import FixedFactors, TPACache, TPAQuery
from t6jax.ops.rope import RoPE


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of decode. lengths: valid tokens of each sequence, N new ones included."""

    heads: int = 47
    ranks: tuple[int, int, int] = (6, 2, 2)
    dims: tuple[int, int] = (64, 64)
    new: int = 1
    room: int = 70
    lengths: tuple[int, ...] = (0, 1, 33, 70)
    kind: str = "contextual"
    scale: float | None = None


CASES = {
    "contextual": Case(),
    "several new tokens": Case(new=3),
    "dense query": Case(kind="dense query", new=3),
    "fixed a": Case(kind="fixed a", new=3),
    "fixed b": Case(kind="fixed b", new=3),
    "fixed and shared b": Case(kind="fixed and shared b"),
    "shared b": Case(kind="shared b", new=3),
    "one token": Case(room=1, lengths=(0, 1)),
    "one head": Case(heads=1, ranks=(1, 1, 1)),
    "many query ranks": Case(heads=34, ranks=(16, 1, 1)),
    "more keys' than values' ranks": Case(heads=78, ranks=(2, 4, 1), scale=0.3),
    "narrow values": Case(heads=5, dims=(64, 32)),
    "long": Case(heads=34, room=700, lengths=(0, 700, 333)),
}


def factors(case: Case, dtype) -> dict[str, np.ndarray]:
    """Random factors, rounded to a dtype, in float64."""
    rng = np.random.default_rng(case.heads + case.room)
    (rank_q, rank_k, rank_v), (d, e) = case.ranks, case.dims
    batch = len(case.lengths)
    shapes = {
        "a_q": (batch, case.new, rank_q, case.heads),
        "b_q": (batch, case.new, rank_q, d),
        "a_k": (batch, case.room, rank_k, case.heads),
        "b_k": (batch, case.room, rank_k, d),
        "a_v": (batch, case.room, rank_v, case.heads),
        "b_v": (batch, case.room, rank_v, e),
    }
    draw = lambda shape: np.asarray(jnp.asarray(rng.standard_normal(shape), dtype), np.float64)
    return {name: draw(shape) for name, shape in shapes.items()}


def arguments(case: Case, dtype, f: dict[str, np.ndarray] | None = None):
    """(query, cache, lengths, fixed) of a case."""
    f = factors(case, dtype) if f is None else f
    f = {name: jnp.asarray(x, dtype) for name, x in f.items()}
    query = TPAQuery(f.pop("a_q"), f.pop("b_q"))
    if case.kind == "dense query":
        query = jnp.einsum("bnrh,bnrd->bnhd", *query) / case.ranks[0]
    fixed = FixedFactors()
    if case.kind == "fixed a":
        fixed = FixedFactors(a_k=f["a_k"][0, 0], a_v=f["a_v"][0, 0])
    if case.kind == "fixed b":
        fixed = FixedFactors(b_k=f["b_k"][0, 0], b_v=f["b_v"][0, 0])
    if case.kind == "fixed and shared b":
        fixed = FixedFactors(b_k=f["b_k"][0, 0])
    tokens = {name: None if getattr(fixed, name) is not None else x for name, x in f.items()}
    if "shared" in case.kind:
        tokens["b_v"] = None
    rope = RoPE() if case.kind in ("fixed b", "fixed and shared b", "shared b") else None
    cache = TPACache.from_factors(**tokens, fixed=fixed, rope=rope)
    return query, cache, jnp.array(case.lengths, jnp.int32), fixed


def algorithm_1(case: Case, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Attention and log-sum-exps of a case: keys and values from eq. 3.1, in float64."""
    f = factors(case, dtype)
    for name in {"fixed a": ("a_k", "a_v"), "fixed b": ("b_k", "b_v")}.get(case.kind, ()):
        f[name] = np.broadcast_to(f[name][:1, :1], f[name].shape)
    if case.kind == "fixed and shared b":
        f["b_k"] = np.broadcast_to(f["b_k"][:1, :1], f["b_k"].shape)
    if "shared" in case.kind:
        f["b_v"] = f["b_k"]
    if case.kind in ("fixed b", "fixed and shared b", "shared b"):
        positions = jnp.arange(case.room)[None]
        rotated = RoPE()(jnp.asarray(f["b_k"], dtype), positions)
        f["b_k"] = np.asarray(rotated, np.float64)
    dense = lambda a, b: np.einsum("...rh,...rd->...hd", a, b) / a.shape[-2]
    query = dense(f["a_q"], f["b_q"])
    if case.kind == "dense query":  # rounded once
        query = np.asarray(arguments(case, dtype)[0], np.float64)
    key, value = dense(f["a_k"], f["b_k"]), dense(f["a_v"], f["b_v"])
    scale = case.dims[0] ** -0.5 if case.scale is None else case.scale
    logits = np.einsum("bnhd,bmhd->bnhm", query, key) * scale
    limit = np.array(case.lengths)[:, None] - case.new + 1 + np.arange(case.new)
    seen = (np.arange(case.room) < limit[:, :, None])[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.where(seen, logits, -np.inf)
        highest = logits.max(-1, keepdims=True)
        p = np.where(seen, np.exp(logits - highest), 0)
        total = p.sum(-1)
        lse = np.where(total > 0, np.log(total) + highest[..., 0], -np.inf)
        p = np.where(total[..., None] > 0, p / total[..., None], 0)
    return np.einsum("bnhm,bmhe->bnhe", p, value), lse


def draw(rng, batch, new, length, heads, rank_q, rank_k, rank_v, d, e):
    shapes = {
        "a_q": (batch, new, rank_q, heads),
        "b_q": (batch, new, rank_q, d),
        "a_k": (batch, length, rank_k, heads),
        "b_k": (batch, length, rank_k, d),
        "a_v": (batch, length, rank_v, heads),
        "b_v": (batch, length, rank_v, e),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def relative_error(got, want) -> float:
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


class DecodeTests:
    """implementation: that the tests run. dtype: of queries and caches."""

    implementation: str | None
    dtype = jnp.float32

    @property
    def tolerance(self) -> float:
        """Of results, relative, in the root mean square.

        Roundings are off by eps / sqrt(12) each. In half precision those are the query, the weights
        times a_v and the output; float32 rounds each of some hundred products and sums.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        return (256 if self.dtype == jnp.float32 else 4) * eps / np.sqrt(12)

    def decode(self, query, cache, lengths, fixed, **options):
        options = {"implementation": self.implementation, "return_lse": True} | options
        run = lambda *a: t6jax.decode(*a[:3], fixed=a[3], **options)
        return jax.jit(run)(query, cache, lengths, fixed)

    @pytest.mark.parametrize("name", CASES)
    def test_is_algorithm_1(self, name):
        case = CASES[name]
        want, want_lse = algorithm_1(case, self.dtype)
        out, lse = self.decode(*arguments(case, self.dtype), scale=case.scale)
        assert out.dtype == self.dtype and lse.dtype == jnp.float32
        assert relative_error(out, want) < self.tolerance
        seen = np.isfinite(want_lse)
        # of scores as large as the largest of thousands of normal numbers
        largest = 8 * max(1, np.abs(want_lse[seen]).max())
        np.testing.assert_allclose(lse[seen], want_lse[seen], atol=self.tolerance * largest)
        assert np.isneginf(np.asarray(lse)[~seen]).all() and not np.asarray(out)[~seen].any()

    @pytest.mark.parametrize("kind", ["contextual", "fixed a", "fixed b", "shared b"])
    def test_tokens_after_the_length_do_not_matter_even_nan(self, kind):
        case = Case(heads=5, kind=kind, new=2, lengths=(40, 7))
        f = factors(case, self.dtype)
        clean = self.decode(*arguments(case, self.dtype, f))
        fixed = {"fixed a": ("a_k", "a_v"), "fixed b": ("b_k", "b_v")}.get(kind, ())
        for name in {"a_k", "b_k", "a_v", "b_v"}.difference(fixed):
            for b, length in enumerate(case.lengths):
                f[name][b, length:] = np.nan
        for got, want in zip(self.decode(*arguments(case, self.dtype, f)), clean, strict=True):
            np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))

    def test_lengths_are_clipped_to_the_cache_and_need_no_recompilation(self):
        case = Case(new=3, lengths=(0, 70, 70))
        query, cache, lengths, _ = arguments(case, self.dtype)
        run = jax.jit(
            functools.partial(t6jax.decode, implementation=self.implementation, return_lse=True)
        )
        want = run(query, cache, lengths)
        for got, one in zip(run(query, cache, jnp.array([-5, 71, 2000])), want, strict=True):
            np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(one, np.float32))
        assert run._cache_size() == 1

    def test_under_vmap_each_has_its_own_query_cache_and_lengths(self):
        cases = [Case(lengths=(0, 70, 9)), Case(lengths=(1, 8, 50))]
        calls = [arguments(case, self.dtype)[:3] for case in cases]
        both = jax.tree.map(lambda *x: jnp.stack(x), *calls)
        decode = functools.partial(t6jax.decode, implementation=self.implementation)
        got = jax.jit(jax.vmap(decode))(*both)
        for out, case in zip(got, cases, strict=True):
            assert relative_error(out, algorithm_1(case, self.dtype)[0]) < self.tolerance

    @pytest.mark.parametrize("kind", ["contextual", "dense query", "fixed a", "fixed b"])
    def test_the_gradient_is_algorithm_1s(self, kind):
        """As differentiation of the definition gives it, which the tests of "xla" check."""
        case = Case(heads=5, kind=kind, room=9, lengths=(9, 4))
        query, cache, lengths, fixed = arguments(case, self.dtype)
        grad = np.random.default_rng(0).standard_normal((2, 1, 5, 64))

        def loss(query, implementation):
            out = t6jax.decode(query, cache, lengths, fixed=fixed, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32) * grad)

        ours, want = (
            jax.jit(jax.grad(functools.partial(loss, implementation=name)))(query)
            for name in (self.implementation, "xla")
        )
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
            assert relative_error(x, y) < self.tolerance

    def test_appending_is_in_place(self):
        query, cache, lengths, _ = arguments(Case(room=64, lengths=(1, 33, 64)), self.dtype)

        def step(cache, query, lengths):
            entry = jax.tree.map(lambda x: x[:, :1], cache.stored())
            cache = cache.append(entry, lengths - 1)
            return t6jax.decode(query, cache, lengths, implementation=self.implementation), cache

        run = jax.jit(step, donate_argnums=0)
        compiled = run.lower(cache, query, lengths).compile()
        assert compiled.memory_analysis().alias_size_in_bytes >= cache.rows.nbytes
        want = t6jax.decode(query, step(cache, query, lengths)[1], lengths, implementation="xla")
        out, cache = run(cache, query, lengths)
        assert relative_error(out, want) < self.tolerance

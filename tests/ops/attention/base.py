"""What every implementation of causal attention is held to: eq. 3.2 and its gradient in float64.

tests/ops/attention and tests/gpu derive a class for each implementation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops.attention import Segments, causal_attention


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of causal_attention. chunks: of how many devices' chunks, and which device's."""

    tokens: int = 128
    heads: int = 3
    groups: int | None = None
    dims: tuple[int, int] = (64, 64)
    batch: int = 2
    segments: str = ""
    scale: float | None = None
    chunks: tuple[int, int] | None = None


CASES = {
    "one block": Case(),
    "many heads": Case(tokens=256, heads=47),
    "one head": Case(tokens=384, heads=1, batch=1),
    "odd length": Case(tokens=333, heads=5),
    "one token": Case(tokens=1),
    "grouped heads": Case(heads=6, groups=2),
    "narrow values": Case(dims=(96, 64)),
    "odd widths": Case(tokens=9, heads=6, groups=3, dims=(8, 5)),
    "segments": Case(tokens=130, heads=5, segments="own"),
    "continuations of a context": Case(tokens=130, segments="context"),
    "negative scale": Case(scale=-0.3),
    "no scale": Case(scale=0.0),
    "first device's chunks": Case(tokens=1024, batch=1, chunks=(2, 0)),
    "second device's chunks": Case(tokens=1024, batch=1, chunks=(2, 1)),
    "chunks under segments": Case(tokens=256, heads=5, segments="own", chunks=(2, 1)),
    "chunks under a context": Case(tokens=256, segments="context", chunks=(4, 2)),
}


class Call:
    """The arrays of a case, rounded to a dtype, and the mask that they attend under."""

    def __init__(self, case: Case, dtype):
        rng = np.random.default_rng(case.tokens + case.heads)
        devices, device = (1, 0) if case.chunks is None else case.chunks
        length, groups = devices * case.tokens, case.groups or case.heads
        shapes = [
            (case.batch, case.tokens, case.heads, case.dims[0]),
            (case.batch, length, groups, case.dims[0]),
            (case.batch, length, groups, case.dims[1]),
            (case.batch, case.tokens, case.heads, case.dims[1]),
        ]
        *arrays, grad = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
        self.arrays, self.grad = arrays, grad
        self.scale = case.dims[0] ** -0.5 if case.scale is None else case.scale
        numbers = device, 2 * devices - 1 - device
        half = case.tokens // 2
        positions = np.arange(length)
        if case.chunks is not None:
            positions = np.concatenate([n * half + np.arange(half) for n in numbers])
        self.seen = positions[:, None] >= np.arange(length)
        self.options = {}
        if case.chunks is not None:
            self.options["chunks"] = tuple(jnp.int32(n) for n in numbers)
        own = np.arange(length) // max(1, length // 3) + np.zeros((case.batch, 1), int)
        context = np.where(np.arange(length) < length // 3, own, 0)
        self.seen = np.broadcast_to(self.seen, (case.batch, *self.seen.shape))
        if case.segments == "own":
            self.options["segment_ids"] = jnp.asarray(own)
            self.seen = self.seen & (own[:, positions, None] == own[:, None])
        if case.segments == "context":
            self.options["segment_ids"] = Segments(jnp.asarray(own), jnp.asarray(context))
            same = own[:, positions, None] == own[:, None]
            self.seen = self.seen & (same | (context[:, positions, None] == own[:, None]))

    def attend(self, implementation, *arrays):
        return causal_attention(
            *arrays, **self.options, scale=self.scale, implementation=implementation
        )


def eq_3_2(call: Call) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output of a call and the gradients of query, key and value, in float64."""
    # heads before tokens, for matmul, which calls BLAS where einsum does not
    q, k, v, grad = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (*call.arrays, call.grad))
    share = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, share, axis=1) for x in (k, v))
    transposed = lambda x: x.swapaxes(-1, -2)
    logits = np.where(call.seen[:, None], q @ transposed(k) * call.scale, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = p @ v
    dp = grad @ transposed(v)
    # sum_s p dp is dO . O; so written, one visible token's ds is exactly 0
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) * call.scale
    of_groups = lambda x: x.reshape(len(x), -1, share, *x.shape[2:]).sum(2)
    gradients = ds @ k, of_groups(transposed(ds) @ q), of_groups(transposed(p) @ grad)
    return out.swapaxes(1, 2), [x.swapaxes(1, 2) for x in gradients]


def error(got, want) -> float:
    """Relative, in the root mean square; where nothing is wanted, absolute."""
    got = np.asarray(got, np.float64)
    return np.linalg.norm(got - want) / (np.linalg.norm(want) or 1)


class AttentionTests:
    """implementation: that the tests run. takes: the cases that it takes; None: all."""

    implementation: str | None
    dtype = jnp.float32
    takes: frozenset[str] | None = None

    @property
    def tolerance(self) -> float:
        """Relative, in the root mean square. A rounding is off by eps / sqrt(12). In half
        precision the weights or their gradients, the output and the result are rounded; float32
        rounds each of some hundred products and sums.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        return (64 if self.dtype == jnp.float32 else 4) * eps / np.sqrt(12)

    @pytest.mark.parametrize("name", CASES)
    def test_is_eq_3_2_with_its_gradient(self, name):
        call = Call(CASES[name], self.dtype)
        attend = functools.partial(call.attend, self.implementation)
        if self.takes is not None and name not in self.takes:
            with pytest.raises(NotImplementedError, match=f"'{self.implementation}' does not take"):
                attend(*call.arrays)
            return

        @jax.jit
        def run(arrays, grad):
            out, back = jax.vjp(attend, *arrays)
            return out, back(grad)

        out, grads = run(call.arrays, call.grad)
        want_out, want_grads = eq_3_2(call)
        assert out.dtype == self.dtype
        assert error(out, want_out) < self.tolerance
        assert error(jax.jit(attend)(*call.arrays), want_out) < self.tolerance
        for got, want in zip(grads, want_grads, strict=True):
            assert error(got, want) < self.tolerance

    def test_under_vmap_each_has_its_own(self):
        call = Call(Case(batch=4), self.dtype)
        split = lambda x: x.reshape(2, 2, *x.shape[1:])
        run = jax.jit(jax.vmap(functools.partial(call.attend, self.implementation)))
        out = run(*map(split, call.arrays))
        assert error(out.reshape(call.grad.shape), eq_3_2(call)[0]) < self.tolerance

    def test_rematerialisation_by_name_keeps_the_output(self):
        """The gradient of a checkpointed call, whose policy keeps what attention names."""
        call = Call(Case(), self.dtype)
        attend = functools.partial(call.attend, self.implementation)
        policy = jax.checkpoint_policies.save_only_these_names("attention")
        gradient = lambda f: jax.jit(lambda arrays, grad: jax.vjp(f, *arrays)[1](grad))
        want = eq_3_2(call)[1]
        for got, one in zip(
            gradient(jax.checkpoint(attend, policy=policy))(call.arrays, call.grad),
            want,
            strict=True,
        ):
            assert error(got, one) < self.tolerance

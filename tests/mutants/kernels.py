"""Faults of the GPU kernels' parts that run without a GPU: host code, and Triton's interpreter."""

from tests.mutants.table import Faults

SPLIT = "tests/pallas_kernels/decode/test_work_split.py"
LAYOUT = "tests/pallas_kernels/decode/test_cache_layout.py"
TRITON = "tests/pallas_kernels/decode/test_triton.py::test_matches_algorithm_1[sizes0-options0]"
TABLE = "tests/pallas_kernels/decode/test_triton.py::test_matches_algorithm_1[sizes3-options3]"
ELEMENTWISE = "tests/pallas_kernels/elementwise/test_elementwise.py"
FACTORS = "tests/pallas_kernels/factors/test_tensor_products.py"

FAULTS = (
    Faults(
        "pallas_kernels/decode/work_split.py",
        (SPLIT,),
        (
            (
                "lax.div(self.length(b) + (self.tokens - 1), self.tokens)",
                "lax.div(self.length(b), self.tokens)",
            ),
            (
                "jnp.minimum(jnp.maximum(self.lengths_ref[b], 0), self.capacity)",
                "jnp.maximum(self.lengths_ref[b], 0)",
            ),
            (
                "jnp.minimum(jnp.maximum(self.lengths_ref[b], 0), self.capacity)",
                "jnp.minimum(self.lengths_ref[b], self.capacity)",
            ),
            (
                "return jnp.minimum(block * share + jnp.minimum(block, longer), total)",
                "return block * share + jnp.minimum(block, longer)",
            ),
            ("past = ends <= tile", "past = ends < tile"),
            ("jnp.where(b < sequence, tiles, 0)", "jnp.where(b <= sequence, tiles, 0)"),
            (
                "longer + lax.div(past_longer, jnp.maximum(share, 1))",
                "lax.div(past_longer, jnp.maximum(share, 1))",
            ),
            ("left == 1, next_sequence", "left == 0, next_sequence"),
            ("(c[1] == 0) & (c[0] < self.batch - 1)", "(c[1] < 0) & (c[0] < self.batch - 1)"),
        ),
    ),
    Faults(
        "pallas_kernels/decode/triton.py",
        (TRITON,),
        (
            ("A_V=layout.a_v,", "A_V=layout.a_k,"),
            ("SCALE=scale / layout.rank_k * LOG2E,", "SCALE=scale * LOG2E,"),
            ("SCALE=scale / layout.rank_k * LOG2E,", "SCALE=scale / layout.rank_k,"),
            ("W_B=layout.b_width,", "W_B=layout.width,", (TABLE,)),
        ),
    ),
    Faults(
        "pallas_kernels/decode/triton_kernels.py",
        (TRITON,),
        (
            ("visible = length - (N - 1) + n", "visible = length"),
            ("tiles = tl.cdiv(length, TOKENS)", "tiles = length // TOKENS"),
            ('s = tl.where((token < visible)[None, :], s * SCALE, float("-inf"))', "s = s * SCALE"),
            ("top = tl.max(m, 0)", "top = tl.min(m, 0)"),
            ("l = l * alpha + tl.sum(p, 1)", "l = l + tl.sum(p, 1)"),
            ("o = o * alpha[:, None]\n", "o = o\n"),
            ("acc / (R_V * safe)", "acc / safe"),
            ("(top + tl.log2(safe)) * LN2", "top + tl.log2(safe)"),
            ("(tl.dot(a_q, b_q) * (1.0 / R_Q))", "tl.dot(a_q, b_q)"),
        ),
    ),
    Faults(
        "pallas_kernels/decode/cache_layout.py",
        (LAYOUT,),
        (
            (
                "return self.a_k + self.rank_k * self.padded_heads",
                "return self.a_k + self.rank_v * self.padded_heads",
            ),
            (
                "return self.b_v + self.rank_v * self.dim_v",
                "return self.b_v + self.rank_v * self.dim_k",
            ),
            ("return round_up(self.shard.heads, 8)", "return self.shard.heads"),
            (
                "where = jnp.where(where < 0, len(rows), where)",
                "where = where",
                (f"{LAYOUT}::test_append_writes_nothing_before_the_start",),
            ),
            (
                "where = length + jnp.arange(len(new), dtype=length.dtype)",
                "where = length + 1 + jnp.arange(len(new), dtype=length.dtype)",
            ),
        ),
    ),
    Faults(
        "t6jax/ops/decode/kernels.py",
        ("tests/ops/decode/test_kernels.py",),
        (
            ("b_k = cache.rope(b_k[None], positions[None])[0]", "b_k = b_k"),
            ('options["a"] = (fixed.a_k, fixed.a_v)', 'options["a"] = (fixed.a_v, fixed.a_k)'),
            ("scale=scale,\n        return_lse=True", "scale=1.0,\n        return_lse=True"),
        ),
    ),
)

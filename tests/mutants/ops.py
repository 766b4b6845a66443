"""Faults of the pure functions on arrays."""

from tests.mutants.table import Faults

ROPE = "tests/ops/test_rope.py"
MEAN = "tests/ops/test_cross_entropy.py"
SWIGLU = "tests/ops/test_swiglu.py"
DOCUMENTS = "tests/ops/test_documents.py::test_segments_and_positions"
CACHE = "tests/ops/test_tpa_cache.py"
ARGUMENTS = "tests/ops/test_tpa_cache_arguments.py"
DECODE = "tests/ops/decode/test_decode.py"
DENSE = "tests/attention/test_properties.py::test_dense_decode_is_attention_over_what_is_seen"
FIXED = (
    "tests/attention/test_properties.py"
    "::test_a_cache_of_fixed_and_shared_factors_is_the_cache_of_what_they_stand_for"
)
SATURATED = f"{DECODE}::test_saturated_and_equal_scores_stay_finite"
TPA = "tests/attention/test_decode_equals_forward.py"
NORM = "tests/ops/test_residual.py"
_EQUATION = "tests/ops/attention/test_attention.py::TestXLA::test_is_eq_3_2_with_its_gradient"
ATTENTION = tuple(f"{_EQUATION}[{name}]" for name in ("odd widths", "continuations of a context"))
CHUNKS = f"{_EQUATION}[first device's chunks]"
ALGORITHM_1 = f"{DECODE}::TestXLA::test_is_algorithm_1[several new tokens]"

FAULTS = (
    Faults(
        "t6jax/ops/rope.py",
        (ROPE,),
        (
            ("wide = at_least_float32(x)", "wide = x"),
            ("x1 * cos + x2 * sin", "x1 * cos - x2 * sin"),
            ("x2 * cos - x1 * sin", "x2 * cos + x1 * sin"),
            ("np.arange(0, dim, 2, dtype=np.float32)", "np.arange(0, dim // 2, dtype=np.float32)"),
            (
                "return rounded(jnp.cos(angle)), rounded(jnp.sin(angle))",
                "return jnp.cos(angle), jnp.sin(angle)",
            ),
            ('number("RoPE\'s base", self.base, Range(above=0))', "pass"),
        ),
    ),
    Faults(
        "t6jax/ops/tensor_product.py",
        (ROPE, "tests/attention/test_paper.py::test_theorem_e_1_rope_on_b_is_rope_on_the_whole"),
        (
            (
                "return (product / a.shape[-2])",
                "return (product / a.shape[-1])",
                ("tests/attention/test_tpa.py::test_the_layer_is_equations_3_1_to_3_3",),
            ),
            (
                "return (product / a.shape[-2])",
                "return product",
                ("tests/attention/test_tpa.py::test_the_layer_is_equations_3_1_to_3_3",),
            ),
            (
                "product = c[..., :, None] * b[..., None, :]",
                "product = b[..., :, None] * c[..., None, :]",
            ),
            (
                "rows[..., p.offset_b : p.offset_b + p.rank * p.dim]",
                "rows[..., p.offset_a : p.offset_a + p.rank * p.dim]",
                (
                    "tests/attention/test_equations.py::test_one_product_for_all_factors_gives_the_equations_too[tpa]",
                ),
            ),
        ),
    ),
    Faults(
        "t6jax/ops/residual.py",
        (NORM,),
        (
            ("wide = at_least_float32(x)\n    normed", "wide = x\n    normed"),
            (
                "jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon",
                "jnp.mean(wide * wide, axis=-1, keepdims=True)",
            ),
            ("FLOAT32_EPSILON = float(jnp.finfo(jnp.float32).eps)", "FLOAT32_EPSILON = 1e-5"),
            (
                "normed if weight is None else normed * weight",
                "normed if weight is None else normed + weight",
            ),
            (
                "total = checkpoint_name(x + update, RESIDUAL)\n    return total, rms_norm(total)",
                "total = checkpoint_name(x + update, RESIDUAL)\n    return total, rms_norm(update)",
            ),
        ),
    ),
    Faults(
        "t6jax/ops/swiglu.py",
        (SWIGLU,),
        (
            ("* (1 + wide_gate * (1 - s))", "* (1 + wide_gate * s)"),
            ("(wide_grad * wide_gate * s)", "(wide_grad * wide_gate)"),
            ("(wide * jax.nn.sigmoid(wide) *", "(jax.nn.sigmoid(wide) *"),
        ),
    ),
    Faults(
        "t6jax/ops/cross_entropy.py",
        (MEAN,),
        (
            (
                "return *((x * (grad / count)).astype(x.dtype) for x in gradients), None",
                "return *((x / count).astype(x.dtype) for x in gradients), None",
            ),
            ("(jnp.exp(logits - lse) - hit)", "jnp.exp(logits - lse)"),
            ("return total / targets.size, (gradients", "return total / len(targets), (gradients"),
            (
                'table_grad += jnp.einsum("btv,btd->vd", grad, tokens, preferred_element_type=wide)',
                'table_grad += jnp.einsum("btv,btd->vd", grad, tokens)',
            ),
            (
                "        total += jnp.sum(losses)\n    return total / targets.size\n",
                "        total = jnp.sum(losses)\n    return total / targets.size\n",
            ),
        ),
    ),
    Faults(
        "t6jax/ops/documents.py",
        (DOCUMENTS,),
        (
            ("jnp.where(begins, index, 0)", "jnp.where(begins, index + 1, 0)"),
            ("index - last_begin", "index"),
            ("begins = tokens == document_start", "begins = tokens >= document_start"),
        ),
    ),
    Faults(
        "t6jax/ops/decode/masked_softmax.py",
        (DENSE, SATURATED),
        (
            ("lengths[:, None] - new_tokens + 1 +", "lengths[:, None] - new_tokens +"),
            ("jnp.arange(max_length) < limit", "jnp.arange(max_length) <= limit"),
            ("logits - jnp.where(jnp.isfinite(highest), highest, 0)", "logits"),
            (
                "jnp.log(total) + highest[..., 0]",
                "jnp.log(total)",
                (ALGORITHM_1,),
            ),
        ),
    ),
    Faults(
        "t6jax/ops/decode/dense.py",
        (DENSE,),
        (
            (
                "factor: float = dim**-0.5 if scale is None else scale",
                "factor: float = dim**-0.5",
                (
                    f"{TPA}::test_prefill_then_decode_equals_the_full_forward_from_ragged_starts[mla]",
                ),
            ),
            ("* factor, seen)", ", seen)"),
            (
                "query.reshape(batch, new, groups, heads // groups, dim)",
                "query.reshape(batch, new, heads // groups, groups, dim).swapaxes(2, 3)",
            ),
            (
                "value = jnp.where(jnp.any(seen, axis=1)[:, :, None, None], value, 0)",
                "value = value",
                (f"{TPA}::test_a_sequence_that_sees_nothing_gets_zeros_even_beside_garbage",),
            ),
        ),
    ),
    Faults(
        "t6jax/ops/decode/xla.py",
        (ALGORITHM_1,),
        (
            ("/ a_q.shape[2]  # step 2", "  # step 2"),
            ("(scale / a_k.shape[2])", "scale"),
            ("/ a_v.shape[2]  # step 6", "  # step 6"),
            ("cache.rope, jnp.arange(room)[None])", "None, jnp.arange(room)[None])", (FIXED,)),
            (
                "(jnp.where(within, x, 0) for x in (a_v, b_v))",
                "(a_v, b_v)",
                (f"{DECODE}::TestXLA::test_tokens_after_the_length_do_not_matter_even_nan",),
            ),
        ),
    ),
    Faults(
        "t6jax/ops/tpa_factors.py",
        (ARGUMENTS,),
        (
            ("if shape != (batch, tokens, *size):", "if shape[2:] != size:"),
            ("if shape != (batch, tokens, *size):", "if shape != (batch, tokens, *shape[2:]):"),
            (
                '"a_v": (layout.rank_v, layout.heads) if layout.stores_a else None,\n        "b_v": (layout.rank_v, layout.dim_v) if stores_b_v',
                '"a_v": (layout.rank_k, layout.heads) if layout.stores_a else None,\n        "b_v": (layout.rank_v, layout.dim_v) if stores_b_v',
            ),
            (
                "return y if x is None else x",
                "return y",
                (FIXED,),
            ),
        ),
    ),
    Faults(
        "t6jax/arguments.py",
        (f"{DECODE}::test_types_that_decode_does_not_take_are_named", ARGUMENTS),
        (
            (
                "if not jnp.issubdtype(value.dtype, jnp.floating):",
                "if not jnp.issubdtype(value.dtype, jnp.inexact):",
            ),
            (
                "number = None if isinstance(value, bool | np.bool_) else operator.index(value)",
                "number = operator.index(value)",
            ),
            ("if not math.isfinite(found) or", "if"),
        ),
    ),
    Faults(
        "t6jax/ops/attention/xla.py",
        ATTENTION,
        (
            ("preferred_element_type=wide) * scale", "preferred_element_type=wide)"),
            ("seen = seen & mask[:, :, None]", "seen = seen | mask[:, :, None]"),
            ("if causal else True", "if not causal else True"),
        ),
    ),
    Faults(
        "t6jax/ops/attention/segments.py",
        ATTENTION,
        (
            (
                "(own[:, None, :, None] == key) | (context[:, None, :, None] == key)",
                "own[:, None, :, None] == key",
                (
                    "tests/evaluation/test_scoring.py::test_single_requests_and_none",
                    "tests/evaluation/test_scoring.py::test_scores_are_those_of_each_request_alone[mha]",
                ),
            ),
            (
                "position[:, None] >= jnp.arange(keys)",
                "position[:, None] > jnp.arange(keys)",
                (CHUNKS,),
            ),
        ),
    ),
)

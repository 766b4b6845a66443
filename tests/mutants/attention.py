"""Faults of the attention mechanisms."""

from tests.mutants.table import Faults

EQUATIONS = "tests/attention/test_equations.py::test_the_layer_is_its_equations"
DECODE = (
    "tests/attention/test_decode_equals_forward.py"
    "::test_prefill_then_decode_equals_the_full_forward_from_ragged_starts"
)
JOINED = "tests/attention/test_equations.py::test_one_product_for_all_factors_gives_the_equations_too[tpa]"
CACHED = "tests/attention/test_equations.py::test_what_a_joined_product_caches_is_what_is_cached_of_each_factor"
PAPER = "tests/attention/test_paper.py"
COUNTS = "tests/attention/test_counts.py"
TPA = "tests/attention/test_tpa.py"


def cases(test: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{test}[{name}]" for name in names)


FAULTS = (
    Faults(
        "t6jax/attention/tpa.py",
        cases(EQUATIONS, "tpa", "tpa nonlinear"),
        (
            (
                "self.head_factor(x, self.w_a_q, self.config.activation_q)",
                "self.head_factor(x, self.w_a_q, 'none')",
            ),
            (
                "self.head_factor(x, self.w_a_q, self.config.activation_q)",
                "self.head_factor(x, self.w_a_q, self.config.activation_k)",
            ),
            ("TPAQuery(a, self.rope(b, positions))", "TPAQuery(a, b)"),
            ("self.rope(b, positions)", "self.rope(b, positions + 1)"),
            (
                "self.factor_parameter_count(d_model, self.rank_q)",
                "self.factor_parameter_count(d_model, self.rank_k)",
                (f"{TPA}::test_counts_are_table_1s_from_the_real_arrays",),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/factored.py",
        cases(EQUATIONS, "tpa", "tpa nonlinear", "tpa_nonctx_b", "tpa shared B"),
        (
            (
                "self.head_factor(x, self.w_a_v, c.activation_v)",
                "self.head_factor(x, self.w_a_v, c.activation_k)",
            ),
            (
                "self.head_factor(x, self.w_a_v, c.activation_v)",
                "self.head_factor(x, self.w_a_v, 'none')",
            ),
            (
                "self.head_factor(x, self.w_a_k, c.activation_k)",
                "self.head_factor(x, self.w_a_v, c.activation_k)",
            ),
            ("jax.nn.softmax, axis=-1)", "jax.nn.softmax, axis=-2)"),
            (
                "b_v = None if c.shared_kv_b else self.factor(x, self.w_b_v)",
                "b_v = None if c.shared_kv_b else self.factor(x, self.w_b_k)",
            ),
            ("if not c.keys_rotated_when_read:", "if c.keys_rotated_when_read:"),
            (
                "return self.rope if self.config.keys_rotated_when_read else None",
                "return None",
            ),
            (
                'starts["a", name], starts["b", name], rank, heads, dim, rotate=name != "v"',
                'starts["a", name], starts["b", name], rank, heads, dim, rotate=True',
                (JOINED,),
            ),
            (
                "entry = TPAEntry(a_k, self.rope(b_k, positions), a_v, b_v)",
                "entry = TPAEntry(a_k, b_k, a_v, b_v)",
                (CACHED,),
            ),
            (
                'return init.uniform(bound * math.sqrt(d_model), (rank, size), "rank", axis)',
                'return init.uniform(bound, (rank, size), "rank", axis)',
                (
                    f"{PAPER}::test_non_contextual_factors_start_with_the_variance_of_contextual_ones",
                ),
            ),
            (
                "math.sqrt(6 / (d_model + axis_1 * axis_2))",
                "math.sqrt(3 / (d_model + axis_1 * axis_2))",
                (f"{TPA}::test_both_readings_of_xavier",),
            ),
            (
                "+ self.contextual_b * b_sets * self.b_numbers",
                "+ b_sets * self.b_numbers",
                (COUNTS,),
            ),
            (
                "b_sets = self.rank_k + (0 if self.shared_kv_b else self.rank_v)",
                "b_sets = self.rank_k + self.rank_v",
                (COUNTS,),
            ),
            (
                "out: Any = decode(query, cache, lengths, fixed=self.fixed_factors())",
                "out: Any = decode(query, cache, lengths - 1, fixed=self.fixed_factors())",
                cases(DECODE, "tpa"),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/base.py",
        cases(EQUATIONS, "tpa head norm", "mla head norm"),
        (
            ("HEAD_NORM_EPSILON = 1e-5", "HEAD_NORM_EPSILON = 1e-2"),
            ("if self.config.head_norm:\n", "if False:\n"),
            (
                "rms_norm(heads, HEAD_NORM_EPSILON, self.head_norm[...])",
                "rms_norm(heads, HEAD_NORM_EPSILON)",
            ),
            (
                "starts[:, None] + jnp.arange(x.shape[1])",
                "starts[:, None] + 0 * jnp.arange(x.shape[1])",
                cases(DECODE, "tpa"),
            ),
            (
                "cache = cache.append(entry, starts)\n",
                "cache = cache.append(entry, lengths)\n",
                cases(DECODE, "tpa"),
            ),
            (
                "return self.input_parameter_count(d_model) + output + self.head_norm * self.head_dim",
                "return self.input_parameter_count(d_model) + output + self.head_norm * self.num_heads",
                (COUNTS,),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/mfa.py",
        cases(EQUATIONS, "mfa"),
        (
            (
                'return jnp.einsum("btc,che->bthe", latent, self.weight(self.w_uq))',
                "latent = latent / jnp.sqrt(jnp.mean(latent**2, -1, keepdims=True))\n"
                '        return jnp.einsum("btc,che->bthe", latent, self.weight(self.w_uq))',
            ),
            (
                "return d_model * self.head_dim + self.num_heads * self.head_dim**2",
                "return d_model * self.head_dim + self.head_dim**2",
                (COUNTS,),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/mla.py",
        cases(EQUATIONS, "mla"),
        (
            ("LATENT_EPSILON = 1e-6", "LATENT_EPSILON = 1e-5"),
            (
                "c_q = rms_norm(c_q, LATENT_EPSILON, self.q_norm[...])",
                "c_q = c_q * self.q_norm[...]",
            ),
            (
                "c_kv = rms_norm(c_kv, LATENT_EPSILON, self.kv_norm[...])",
                "c_kv = c_kv * self.kv_norm[...]",
            ),
            ("for w in (self.w_uk, self.w_uv)", "for w in (self.w_uv, self.w_uk)"),
            ("k_r = self.rope(k_r, positions)", "k_r = k_r"),
            ("[q_c, self.rope(q_r, positions)]", "[q_c, q_r]"),
            (
                "scale=self.config.query_dim**-0.5",
                "scale=self.config.head_dim**-0.5",
                cases(DECODE, "mla"),
            ),
            (
                "out[..., : self.config.kv_rank], self.weight(self.w_uv)",
                "out[..., : self.config.kv_rank], self.weight(self.w_uk)",
                cases(DECODE, "mla"),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/dense.py",
        cases(EQUATIONS, "gqa", "mha"),
        (
            ("KeysValues(self.rope(k, positions), v)", "KeysValues(k, v)"),
            ("return self.rope(q, positions), KeysValues", "return q, KeysValues"),
            ("for w in (self.w_k, self.w_v))", "for w in (self.w_k, self.w_k))"),
            (
                "return 2 * self.groups * self.head_dim",
                "return self.groups * self.head_dim",
                (COUNTS,),
            ),
        ),
    ),
    Faults(
        "t6jax/attention/tpa_order3.py",
        cases(EQUATIONS, "tpa_order3", "tpa_order3 shared B"),
        (
            (
                "TPAQuery(a, vec(b, self.factor(x, self.w_c_q)))",
                "TPAQuery(a, vec(b, self.factor(x, self.w_c_q)[..., ::-1]))",
            ),
            ("c_v = entry.c_k if entry.c_v is None else entry.c_v", "c_v = entry.c_k"),
            ("vec(b_v, c_v))", "vec(b_v, entry.c_k))"),
        ),
    ),
    Faults(
        "t6jax/attention/tpa_kvonly.py",
        cases(EQUATIONS, "tpa_kvonly"),
        (
            (
                "return self.rope(checkpoint_name(q, PROJECTION), positions)",
                "return checkpoint_name(q, PROJECTION)",
            ),
            (
                "math.sqrt(6 / (d_model + config.num_heads * config.head_dim))",
                "math.sqrt(6 / d_model)",
                (f"{PAPER}::test_the_dense_queries_of_tpa_kvonly_start_within_xaviers_bound",),
            ),
        ),
    ),
)

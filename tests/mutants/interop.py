"""Faults of what is read from published checkpoints."""

from tests.mutants.table import Faults

TESTS = "tests/interop/test_reference.py"
LOGITS = f"{TESTS}::test_the_published_codes_logits_are_reproduced_in_float32"

FAULTS = (
    Faults(
        "t6jax/interop/reference.py",
        (f"{LOGITS}[_f32_rope-tpa]", f"{LOGITS}[_f32_rope-mla]"),
        (
            (
                'values[f"w_a_{role}"] = a.swapaxes(1, 2)',
                'values[f"w_a_{role}"] = a.reshape(d_model, rank, c.num_heads)',
            ),
            ("reshape(*out, n_in), -1, 0)", "reshape(n_in, *out), 0, 0)"),
            (
                '"w_1": source.linear(prefix + "mlp.c_fc1.weight"',
                '"w_1": source.linear(prefix + "mlp.c_fc2.weight"',
            ),
            (
                'values["w_uk"], values["w_uv"] = np.split',
                'values["w_uv"], values["w_uk"] = np.split',
            ),
            (
                'return "tpa", {"rank_q": source.config("q_rank"), "rank_k": rank, "rank_v": rank}',
                'return "tpa", {"rank_q": rank, "rank_k": rank, "rank_v": rank}',
            ),
            (
                "_dtype_name(rope_table_dtype),",
                '"float32",',
                (f"{TESTS}::test_the_tables_dtype_is_the_models",),
            ),
            (
                "    source.check_all_used()\n",
                "",
                (f"{TESTS}::test_an_unknown_parameter_is_named",),
            ),
            (
                "if not np.array_equal(self._params.setdefault(HEAD, embedding), embedding):",
                "if False:",
                (f"{TESTS}::test_the_tied_embedding_may_go_by_either_name_or_both",),
            ),
        ),
    ),
)

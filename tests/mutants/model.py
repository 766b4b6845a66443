"""Faults of the model and its layers."""

from tests.mutants.table import Faults

TESTS = "tests/test_model.py"
STEPS = f"{TESTS}::test_prefill_and_decoding_token_by_token_is_the_full_forward"
TIED = f"{TESTS}::test_the_tied_embeddings_gradient_is_that_of_both_of_its_uses"
DTYPES = f"{TESTS}::test_a_model_for_decoding_holds_its_parameters_in_the_computations_dtype"
LAYERS = "tests/test_layers.py"

FAULTS = (
    Faults(
        "t6jax/model.py",
        (f"{STEPS}[True]",),
        (
            (
                "x, normed = add_norm(x, update)\n        return x, self.mlp(normed), entry",
                "_, normed = add_norm(x, update)\n        return x, self.mlp(normed), entry",
            ),
            (
                "update, cache = self.attention.extend(rms_norm(x), cache, lengths)",
                "update, cache = self.attention.extend(x, cache, lengths)",
            ),
            ("return x + self.mlp(rms_norm(x)), cache", "return self.mlp(rms_norm(x)), cache"),
            ("(lengths - 1)[:, None, None], axis=1", "lengths[:, None, None], axis=1"),
            (
                "return self._head(rms_norm(x)), tuple(extended)",
                "return self._head(x), tuple(extended)",
            ),
            (
                "            gathered(self.embedding),\n            targets,",
                "            jax.lax.stop_gradient(gathered(self.embedding)),\n            targets,",
                (TIED,),
            ),
            (
                "x = self._embed(tokens)\n        update = jnp.zeros_like(x)",
                "x = jax.lax.stop_gradient(self._embed(tokens))\n        update = jnp.zeros_like(x)",
                (TIED,),
            ),
            (
                "        model = self.in_compute_dtype()\n",
                "        model = nnx.clone(self)\n",
                (DTYPES,),
            ),
            (
                "jax.tree.map(lambda x: x.astype(self.config.dtype), state)",
                "jax.tree.map(lambda x: x, state)",
                (DTYPES,),
            ),
            (
                "return add_norm(x, update)[1], entries\n\n        graph",
                "return x, entries\n\n        graph",
                (f"{TESTS}::test_unstacked_layers_give_the_same_logits",),
            ),
            (
                "uniform(rngs.params(), config.d_model**-0.5, shape, config.param_dtype)",
                "uniform(rngs.params(), config.vocab_size**-0.5, shape, config.param_dtype)",
                (f"{TESTS}::test_the_embedding_starts_as_published",),
            ),
            (
                "positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)\n        x = self",
                "positions = jnp.zeros(tokens.shape, int)\n        x = self",
                (f"{STEPS}[True]",),
            ),
        ),
    ),
    Faults(
        "t6jax/layers.py",
        (f"{LAYERS}::test_padding_changes_neither_output_nor_gradients",),
        (
            ("pad_columns(w_3.T).T", "pad_columns(w_3.T + 1).T"),
            (
                "if width >= 8 * TILE else w",
                "if width >= TILE else w",
                (f"{LAYERS}::test_columns_of_zeros_fill_up_wide_odd_weights_and_no_others",),
            ),
            (
                "checkpoint_name(swiglu(x @ w_1, x @ w_2), GATED)",
                "checkpoint_name(swiglu(x @ w_2, x @ w_1), GATED)",
                (f"{LAYERS}::test_the_mlp_is_section_3_5s_formula",),
            ),
            (
                'parameter(jnp.zeros((width, d_model), param_dtype), "mlp", "d_model")',
                'parameter(jnp.ones((width, d_model), param_dtype), "mlp", "d_model")',
                (f"{LAYERS}::test_the_mlp_is_section_3_5s_formula",),
            ),
        ),
    ),
)

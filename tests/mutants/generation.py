"""Faults of generation: draws, decoding, text."""

from tests.mutants.table import Faults

STREAM = "tests/generation/test_streaming.py"
DRAWS = f"{STREAM}::test_draws_follow_the_distribution_asked_for"
ARGUMENTS = "tests/generation/test_arguments.py"
TEXT = "tests/generation/test_detokenizer.py"
ANEW = f"{STREAM}::test_every_token_is_drawn_anew_and_below_the_vocabulary_size"
REACH = f"{STREAM}::test_temperature_and_top_p_reach_every_token"
GREEDY = f"{STREAM}::test_greedy_is_recomputing_the_full_forward_at_every_token"
STOPS = f"{STREAM}::test_a_sequence_ends_before_its_first_stop_token_and_the_others_go_on"

FAULTS = (
    Faults(
        "t6jax/generation/sampling.py",
        (DRAWS,),
        (
            ("if self.temperature == 0:", "if True:"),
            ("keepdims=True)) / temperature", "keepdims=True)) * temperature"),
            ("keepdims=True)) / temperature", "keepdims=True))"),
            (
                "logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature",
                "logits = logits / temperature",
                (f"{STREAM}::test_logits_of_any_size_stay_apart_however_cold",),
            ),
            ("jnp.maximum(temperature, jnp.finfo(logits.dtype).tiny)", "temperature"),
            ("logits = jnp.where(excluded, -jnp.inf, logits)\n        if 0 <", "if 0 <"),
            ("jnp.cumsum(p, axis=-1) - p <", "jnp.cumsum(p, axis=-1) <"),
            ("if self.top_p < 1:", "if False:"),
            ("if 0 < self.top_k < logits.shape[-1]:", "if False:"),
            (
                "jax.lax.top_k(logits, self.top_k)[0][:, -1:]",
                "jax.lax.top_k(logits, self.top_k)[0][:, :1]",
            ),
            (
                "jnp.arange(logits.shape[-1]) >= self.vocab_size",
                "jnp.arange(logits.shape[-1]) > self.vocab_size",
            ),
            (
                "p = jax.nn.softmax(ranked, axis=-1)",
                "p = jax.nn.softmax(ranked * temperature, axis=-1)",
            ),
            (
                'number("temperature", self.temperature, Range(low=0))',
                "self.temperature",
                (ARGUMENTS,),
            ),
            ('integer("vocab_size", self.vocab_size, _COUNT)', "self.vocab_size", (ARGUMENTS,)),
        ),
    ),
    Faults(
        "t6jax/generation/streaming.py",
        (ANEW,),
        (
            (
                "return i + 1, _State(caches, tokens, lengths, done, key),",
                "return i + 1, _State(caches, tokens, lengths, done, state.key),",
            ),
            (
                "tokens = kind.draw(logits[:, 0], draw, *knobs)",
                "tokens = kind.draw(logits[:, 0], draw)",
                (REACH,),
            ),
            (
                "first = kind.draw(logits, draw, *knobs)",
                "first = kind.draw(logits, draw)",
                (REACH,),
            ),
            ("(sampling.temperature, sampling.top_p)", "(sampling.temperature, 0.5)", (REACH,)),
            ("(sampling.temperature, sampling.top_p)", "(1.0, sampling.top_p)", (REACH,)),
            (
                "sampling = Sampling(temperature, top_k, top_p, vocab_size)",
                "sampling = Sampling(temperature, top_k, top_p)",
            ),
            (
                "jax.random.key(seed)",
                "jax.random.key(0)",
                (f"{STREAM}::test_equal_seeds_give_equal_tokens_and_others_do_not",),
            ),
            ("lengths = state.lengths + 1", "lengths = state.lengths", (GREEDY,)),
            ("rows.append(row[:stop])", "rows.append(row[: stop and stop + 1])", (STOPS,)),
            ("finished[i] |= stop is not None", "finished[i] = False", (STOPS,)),
            (
                "if len(ids) + max_new_tokens > room:",
                "if len(ids) > room:",
                (f"{STREAM}::test_what_cannot_be_generated_is_named",),
            ),
            ('integer("seed", seed, SEEDS)', "seed", (ARGUMENTS,)),
            (
                "if room > config.context_length:",
                "if False:",
                (f"{STREAM}::test_more_room_than_the_context_length_on_request_with_a_warning",),
            ),
        ),
    ),
    Faults(
        "t6jax/generation/api.py",
        (f"{STREAM}::test_strings_are_continued_by_strings",),
        (
            (
                "detokenizer = Detokenizer(tokenizer, prompt)",
                "detokenizer = Detokenizer(tokenizer)",
                (f"{ARGUMENTS}::test_a_string_is_continued_with_the_space_between",),
            ),
            (
                "return [tokenizer.document_start, *tokenizer.encode(text).tolist()]",
                "return tokenizer.encode(text).tolist()",
            ),
            ("vocab_size = 0 if tokenizer is None else tokenizer.vocab_size", "vocab_size = 0"),
            (
                "stop_tokens = () if tokenizer is None else (tokenizer.document_start,)",
                "stop_tokens = ()",
            ),
        ),
    ),
    Faults(
        "t6jax/generation/detokenizer.py",
        (f"{TEXT}::test_a_text_cut_at_any_token_is_the_text",),
        (
            ("CONTEXT = 8", "CONTEXT = 1"),
            ("return text[:-1] if text.endswith(UNKNOWN) else text", "return text"),
            ("self._given = len(text) - pending", "self._given = len(text)"),
            ("pending = len(self._text()) - returned", "pending = 0"),
            (
                "if len(self._window) < 2 * CONTEXT:",
                "if True:",
                (f"{TEXT}::test_the_work_is_linear_in_the_tokens",),
            ),
            (
                "        piece = text[self._given :]\n        self._given = max(self._given, len(text))\n        self._shorten()",
                "        piece = text[self._given :]\n        self._shorten()",
            ),
        ),
    ),
    Faults(
        "t6jax/data/tokenizers.py",
        (f"{TEXT}::test_invalid_bytes_beside_a_character_leave_it_whole",),
        (("if not self._fallback:", "if True:"),),
    ),
)

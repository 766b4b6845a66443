"""Faults of evaluation: losses, scores, the harness, the paper's table."""

from tests.mutants.table import Faults

REPORT = "tests/evaluation/test_report.py"
ENTROPIES = "tests/evaluation/test_entropies.py"
PACKING = "tests/evaluation/test_packing.py"
SCORING = "tests/evaluation/test_scoring.py"
ALONE = f"{SCORING}::test_scores_are_those_of_each_request_alone[tpa]"
HARNESS = "tests/evaluation/test_harness.py"
PAPER = "tests/evaluation/test_paper.py"
WINDOWS = "tests/evaluation/test_bits_per_byte.py"

FAULTS = (
    Faults(
        "t6jax/evaluation/validation.py",
        (REPORT, ENTROPIES),
        (
            ("nats / math.log(2) / bytes_per_token", "nats / math.log(2) * bytes_per_token"),
            ("nats / math.log(2) / bytes_per_token", "nats / bytes_per_token"),
            ("windows = windows[mask > 0]", "windows = windows"),
            (
                "order_0 = (single + 1 / vocab_size) / (single.sum() + 1)",
                "order_0 = single / single.sum()",
            ),
            (
                "before, after = windows[:, :-1].ravel(), windows[:, 1:].ravel()",
                "before, after = windows[:, 1:].ravel(), windows[:, :-1].ravel()",
            ),
            ("return (float(nats / tokens) if tokens", "return (float(nats / len(sums)) if tokens"),
            (
                "left = round(LARGEST_COUNTED_SAMPLE * weight / total)",
                "left = LARGEST_COUNTED_SAMPLE // 2",
            ),
            ("math.exp(min(nats, 700))", "math.exp(nats)"),
            (
                "return jnp.sum(nats * mask[:, None]), jnp.sum(mask) * nats.shape[1]",
                "return jnp.sum(nats), jnp.sum(mask) * nats.shape[1]",
                (f"{REPORT}::test_masked_rows_count_in_neither_sum",),
            ),
            (
                "return jnp.sum(nats * mask[:, None]), jnp.sum(mask) * nats.shape[1]",
                "return jnp.sum(nats * mask[:, None]), jnp.float32(nats.size)",
                (f"{REPORT}::test_masked_rows_count_in_neither_sum",),
            ),
        ),
    ),
    Faults(
        "t6jax/evaluation/paper.py",
        (PAPER,),
        (
            ('Column("PIQA", "piqa", "acc_norm")', 'Column("PIQA", "piqa", "acc")'),
            ('Column("W.G.", "winogrande", "acc")', 'Column("W.G.", "winogrande", "acc_norm")'),
            ('for m in ("acc_norm", "acc") if', 'for m in ("acc", "acc_norm") if'),
            ("scale = 100 if metric in FRACTIONS else 1", "scale = 100"),
            ("math.hypot(*errors) / len(cells)", "math.hypot(*errors)"),
            ('key.replace(",", "_stderr,", 1)', "key"),
            ('if row["num_fewshot"] == num_fewshot}', "}"),
            ('return dataclasses.replace(ours, average=Cell(row["average"]))', "return ours"),
        ),
    ),
    Faults(
        "t6jax/evaluation/packing.py",
        (PACKING,),
        (
            (
                "Request(request.context[-room:], request.continuation)",
                "Request(request.context[:room], request.continuation)",
            ),
            (
                "room = max_length + 1 - len(request.continuation)",
                "room = max_length - len(request.continuation)",
            ),
            ("length + np.arange(inputs),", "np.arange(inputs),"),
            (
                "logit_index[device, n] = last_of_context",
                "logit_index[device, n] = last_of_context + 1",
            ),
            (
                "own[b, here], context[b, here] = segment, context_segment",
                "own[b, here], context[b, here] = context_segment, context_segment",
            ),
            ("row_start = device_row * T", "row_start = b * T"),
            ("rows_with_room[room - size].append(row)", "rows_with_room[room].append(row)"),
        ),
    ),
    Faults(
        "t6jax/evaluation/scoring.py",
        (ALONE,),
        (
            ("of_target - jax.nn.logsumexp(logits, axis=1)", "of_target"),
            ("np.logical_and.reduceat", "np.logical_or.reduceat"),
            ("starts = np.append(0, ends[:-1])", "starts = np.append(0, ends[:-1] - 1)"),
            ("segment_ids=Segments(own, context)", "segment_ids=Segments(own, own)"),
            (
                "truncate(request, self.max_length)",
                "truncate(request, self.max_length + 64)",
                (f"{SCORING}::test_scores_do_not_depend_on_order_batch_or_window",),
            ),
        ),
    ),
    Faults(
        "t6jax/evaluation/bits_per_byte.py",
        (WINDOWS,),
        (
            ("whole = [document_start, *tokens]", "whole = [*tokens]"),
            (
                "whole[max(0, end - 1 - max_length) : begin]",
                "whole[max(0, end - max_length) : begin]",
            ),
            (
                "whole[max(0, end - 1 - max_length) : begin]",
                "whole[max(0, begin - stride) : begin]",
            ),
            ("nats -= sum(", "nats += sum("),
        ),
    ),
    Faults(
        "t6jax/evaluation/harness.py",
        (
            f"{HARNESS}::test_loglikelihood_of_text",
            f"{HARNESS}::test_generation_stops_at_each_ones_own_stop_sequence",
        ),
        (
            ("self.tok_encode(context)[-room:]", "self.tok_encode(context)[:room]"),
            ("return self._tokens.document_start", "return 0"),
            (
                "totals[i] += log_likelihood",
                "totals[i] = log_likelihood",
                (f"{HARNESS}::test_rolling_loglikelihood_predicts_every_token_once",),
            ),
            (
                'if kwargs["do_sample"]:',
                "if False:",
                (f"{HARNESS}::test_sampling_draws_and_unknown_settings_are_named",),
            ),
            (
                "stop and stop in self._text(tokens[row]) for stop in until",
                "stop and stop in self._text(tokens[0]) for stop in until",
            ),
            (
                'self.cache_hook.add_partial("loglikelihood", texts, answer)',
                "pass",
                (f"{HARNESS}::test_kept_answers_are_not_asked_for_again",),
            ),
        ),
    ),
)

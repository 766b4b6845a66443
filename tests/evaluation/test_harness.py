"""The model of lm-evaluation-harness answers its requests as a forward pass over each alone
does.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from t6jax.data.tokenizers import ByteTokenizer, JsonTokenizer
from t6jax.errors import InputError
from t6jax.evaluation.harness import T6LM
from t6jax.evaluation.packing import Request
from tests.evaluation.local_tasks import NAMES
from tests.evaluation.models import Alone, config, random_model

TOLERANCE = 1e-4  # nats, what is promised
START = ByteTokenizer.document_start
# no two parts of it are alike, so that what is cut off it shows
LONG = "".join(chr(33 + i * 29 % 90) for i in range(90))


@pytest.fixture(scope="module")
def model():
    return random_model(config(vocab_size=257, context_length=64))


@pytest.fixture(scope="module")
def lm(model):
    return T6LM.from_model(model, ByteTokenizer(), batch_tokens=512)


@pytest.fixture(scope="module")
def alone(model):
    return Alone(model)


def instances(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def check(answers, requests, alone):
    for (log_likelihood, greedy), request in zip(answers, requests, strict=True):
        expected, likeliest = alone(request)
        assert abs(log_likelihood - expected) < TOLERANCE
        assert greedy == likeliest


def test_loglikelihood_of_text(lm, alone):
    pairs = [
        ("a context", " and more"),
        ("", "no context"),  # behind the token that starts a document
        ("spaces at its end  ", "belong to what follows"),
        (LONG, "y"),  # of a context that exceeds the window its end is kept
        ("été", " ß"),
    ]
    expected = [
        Request(b"a context", b" and more"),
        Request([START], b"no context"),
        Request(b"spaces at its end", b"  belong to what follows"),
        Request(LONG.encode(), b"y"),
        Request("été".encode(), " ß".encode()),
    ]
    answers = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    check(answers, [Request(list(r.context), list(r.continuation)) for r in expected], alone)


def test_a_token_across_the_border_counts_to_the_context(tmp_path):
    from tokenizers import Tokenizer, models

    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "x", "ab", "<|endoftext|>"])}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")])).save(
        str(tmp_path / "tokenizer.json")
    )
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json", "merging")
    model = random_model(config(vocab_size=6))
    lm = T6LM.from_model(model, tokenizer, batch_tokens=64)
    # "xabc" is x, ab, c; the context has two tokens, so what lies behind two of the whole is scored
    assert lm._encode_pair("xa", "bc") == ([3, 0], [2])
    answers = lm.loglikelihood(instances("loglikelihood", ("xa", "bc")), disable_tqdm=True)
    check(answers, [Request([3, 0], [2])], Alone(model))


def test_rolling_loglikelihood_predicts_every_token_once(lm, alone):
    texts = ["", "short", "one window exactly".ljust(64, "."), "several windows " * 11]
    totals = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", *[(text,) for text in texts]), disable_tqdm=True
    )
    for text, total in zip(texts, totals, strict=True):
        windows = get_rolling_token_windows(
            list(text.encode()), START, max_seq_len=64, context_len=1
        )
        expected = [alone(Request(*make_disjoint_window(window)))[0] for window in windows]
        assert abs(total - sum(expected)) < TOLERANCE * max(1, len(expected))


def greedy(model, prompt, new_tokens):
    """The likeliest continuation by one forward pass a token."""
    tokens, forward = list(prompt), jax.jit(lambda tokens: model(tokens))
    for _ in range(new_tokens):
        padded = jnp.array(tokens + [0] * (64 - len(tokens)))[None]
        tokens.append(int(np.asarray(forward(padded))[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def check_generations(lm, model):
    contexts = ["a", "another context", LONG, "d d", "the fifth"]
    plain = {"until": [], "max_gen_toks": 10, "do_sample": False}
    texts = lm.generate_until(
        instances("generate_until", *[(c, plain) for c in contexts]), disable_tqdm=True
    )
    expected = []
    for context in contexts:
        made = greedy(model, context.encode()[-54:], 10)
        made = made[: made.index(START)] if START in made else made
        expected.append(bytes(t for t in made if t < 256).decode("utf-8", "replace"))
    assert texts == expected
    return contexts, texts


def test_generation_stops_at_each_ones_own_stop_sequence(lm, model):
    contexts, texts = check_generations(lm, model)
    stop = next(character for text in texts for character in text[2:-1])  # one that comes inside
    stopped = {"until": [stop, "never there"], "max_gen_toks": 10}
    cut = lm.generate_until(
        instances("generate_until", *[(c, stopped) for c in contexts]), disable_tqdm=True
    )
    assert cut == [text.split(stop)[0] for text in texts] != texts


def test_sampling_draws_and_unknown_settings_are_named(lm):
    request = lambda **kwargs: instances(
        "generate_until", ("a", {"until": [], "max_gen_toks": 30} | kwargs)
    )
    greedy_text = lm.generate_until(request(), disable_tqdm=True)
    assert (
        lm.generate_until(request(do_sample=True, top_k=50, top_p=0.95), disable_tqdm=True)
        != greedy_text
    )
    with pytest.raises(
        InputError, match="generation_kwargs has 'num_beams'; t6jax takes until, max_gen_toks"
    ):
        lm.generate_until(request(num_beams=2))
    with pytest.raises(
        InputError,
        match="max_gen_toks=64 leaves no room for a context in the model's window of 64 tokens",
    ):
        lm.generate_until(request(max_gen_toks=64))


def evaluate(lm, folder, **options):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        model=lm, tasks=list(NAMES), task_manager=manager, bootstrap_iters=10, **options
    )


def test_tasks_of_each_kind_with_examples(lm, alone, task_folder):
    results = evaluate(lm, task_folder, num_fewshot=1)
    samples = results["samples"]
    right = []
    for sample in samples["local_choice"]:
        requests = [Request(list(c.encode()), list(a.encode())) for c, a in sample["arguments"]]
        assert sample["arguments"][0][0].count("Question:") == 2  # an example before it
        check([answer for (answer,) in sample["resps"]], requests, alone)
        # normalised by the answer's length, without the space before it
        best = max(
            range(len(requests)),
            key=lambda i: alone(requests[i])[0] / (len(requests[i].continuation) - 1),
        )
        right.append(best == sample["doc"]["label"])
    assert results["results"]["local_choice"]["acc_norm,none"] == np.mean(right)
    for sample in samples["local_last_word"]:
        ((context, continuation),) = sample["arguments"]
        check(
            sample["resps"][0],
            [Request(list(context.encode()), list(continuation.encode()))],
            alone,
        )
    assert results["results"]["local_text"]["bits_per_byte,none"] > 1
    assert all(
        len(sample["resps"][0][0]) <= 12 and "e" not in sample["resps"][0][0]
        for sample in samples["local_answer"]
    )


def test_kept_answers_are_not_asked_for_again(lm, task_folder, tmp_path, monkeypatch):
    first = evaluate(lm, task_folder, use_cache=str(tmp_path / "answers"), limit=3)
    monkeypatch.setattr(lm, "scorer", None)
    monkeypatch.setattr(lm, "_generate", None)
    again = evaluate(lm, task_folder, use_cache=str(tmp_path / "answers"), limit=3)
    numbers = lambda r: json.dumps(r["results"], sort_keys=True, default=str)
    assert numbers(again) == numbers(first)


def test_an_answer_without_a_token_is_named(lm):
    with pytest.raises(InputError, match=r"the answer '', which has no token, to the .* 'why\?'"):
        lm.loglikelihood(instances("loglikelihood", ("why?", "")), disable_tqdm=True)


def test_what_it_cannot_do_is_named(lm):
    with pytest.raises(
        InputError, match=r"the model t6jax needs a checkpoint: give --model_args ckpt=DIR"
    ):
        T6LM()
    with pytest.raises(
        InputError,
        match=(
            "model_args has 'pretrained'; t6jax takes ckpt, max_length, add_bos_token, batch_tokens"
        ),
    ):
        T6LM("runs/mine", pretrained="gpt2")
    with pytest.raises(
        InputError, match="--apply_chat_template: a t6jax checkpoint has no chat template"
    ):
        simple_evaluate(
            model=lm,
            tasks=["anything"],
            apply_chat_template=True,
            task_manager=_NoTasks(),
            evaluation_tracker=_Tracker(),
        )


class _NoTasks:
    def load(self, tasks):
        return {"tasks": {}, "groups": {}}


class _Tracker:
    class general_config_tracker:
        log_experiment_args = staticmethod(lambda **arguments: None)

"""A checkpoint as a model of lm-evaluation-harness, under the name t6jax."""

import concurrent.futures
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import jax
from flax import nnx

from t6jax.data.corpus import run_tokenizer
from t6jax.data.tokenizers import Tokenizer
from t6jax.errors import InputError
from t6jax.evaluation.packing import Request
from t6jax.evaluation.progress import ProgressBar
from t6jax.evaluation.scoring import Scorer
from t6jax.extras import needs
from t6jax.generation import stream
from t6jax.loading import load_step
from t6jax.model import T6
from t6jax.runs import locate, read_data_config

with needs("eval"):
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

# The new tokens of a generation whose task names no number, as in the harness.
DEFAULT_NEW_TOKENS = 256
MODEL_ARGS = ("ckpt", "max_length", "add_bos_token", "batch_tokens")
GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


class T6LM(TemplateLM):
    """A T6 that answers the harness's requests as the harness's own Hugging Face model does."""

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        max_length: int | None = None,
        add_bos_token: bool = False,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        """Loads a checkpoint onto all local devices.

        Args:
          ckpt: a run's directory, or one step's.
          max_length: the tokens of the model's window. Default: its context_length.
          add_bos_token: whether every context starts with the tokenizer's document_start.
          batch_tokens: the tokens of a batch on each device. Default: by the kind of device.
          batch_size: ignored, like `max_batch_size`; `batch_tokens` takes its place.
          max_batch_size: ignored.
          device: ignored; JAX chooses the devices.
          **unknown: refused.

        Raises:
          InputError: if `ckpt` is missing, cannot be loaded, or an argument is unknown.
        """
        if unknown:
            raise InputError(
                f"model_args has {next(iter(unknown))!r}; t6jax takes {', '.join(MODEL_ARGS)}"
            )
        if ckpt is None:
            raise InputError(
                "the model t6jax needs a checkpoint: give --model_args ckpt=DIR, a run's directory "
                "or one step's"
            )
        workdir, _ = locate(str(ckpt))
        model, step = load_step(str(ckpt))
        tokenizer = run_tokenizer(workdir, read_data_config(workdir))
        info = {
            "ckpt": str(ckpt),
            "step": step,
            "model_num_parameters": model.config.parameter_count,
        }
        self._setup(model, tokenizer, info, max_length, add_bos_token, batch_tokens)

    @classmethod
    def from_model(
        cls,
        model: T6,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> "T6LM":
        """The same for a model that is in memory."""
        lm = cls.__new__(cls)
        lm._setup(model, tokenizer, {}, max_length, False, batch_tokens)
        return lm

    def _setup(
        self,
        model: T6,
        tokenizer: Tokenizer,
        info: dict[str, Any],
        max_length: int | None,
        add_bos_token: bool,
        batch_tokens: int | None,
    ) -> None:
        super().__init__()
        # the harness's bootstrap forks, which can deadlock a process with JAX's threads
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        self._tokens = tokenizer
        self._add_bos_token = add_bos_token
        self._info = info | {
            "model_dtype": model.config.dtype,
            "context_length": model.config.context_length,
        }
        self.scorer = Scorer(model, max_length=max_length, batch_tokens=batch_tokens)
        # a question's context comes once for each of its answers, one after another
        self._encode = functools.lru_cache(maxsize=64)(
            lambda text: tokenizer.encode(text.encode("utf-8", "replace")).tolist()
        )

    @property
    def max_length(self) -> int:
        return self.scorer.max_length

    @property
    def eot_token_id(self) -> int:
        return self._tokens.document_start

    @property
    def tokenizer_name(self) -> str:
        return self._tokens.hash

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes next to its results."""
        return self._info

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return refuse_chat_template()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return refuse_chat_template() if chat_template else None

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options
    ) -> list[int]:
        special = self._add_bos_token and add_special_tokens is not False
        return [self.eot_token_id] * special + self._encode(string)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **options,
    ) -> list[tuple[float, bool]]:
        def cache(i: int, answer: tuple[float, bool]) -> None:
            texts = requests[i][0]
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)

        for texts, _, continuation in requests:
            if not len(continuation):
                context, answer = texts or ("", "")
                raise InputError(
                    f"a task asks for the answer {answer!r}, which has no token, to the question "
                    f"that ends in {context[-60:]!r}: give every choice a text"
                )
        pairs = [Request(context, continuation) for _, context, continuation in requests]
        return self._score(pairs, cache, "log-likelihoods", disable_tqdm)

    def _score(
        self,
        requests: Sequence[Request],
        on_answer: Callable[[int, tuple[float, bool]], None],
        description: str,
        disable_tqdm: bool,
    ) -> list[tuple[float, bool]]:
        """The (log-likelihood, whether greedy) of each request; on_answer is called for each."""
        answers: list[Any] = [None] * len(requests)
        with ProgressBar(
            total=len(requests), desc=description, unit=" requests", disable=disable_tqdm
        ) as progress:
            for finished in self.scorer.stream(requests):
                for i, score in finished:
                    answers[i] = tuple(score)
                    on_answer(i, answers[i])
                progress.update(len(finished))
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows, request_of_window = [], []
        for i, request in enumerate(requests):
            (text,) = request.args
            overlapping = get_rolling_token_windows(
                self.tok_encode(text),
                self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, overlapping):
                windows.append(Request(*window))
                request_of_window.append(i)
        totals = [0.0] * len(requests)
        answers = self._score(windows, lambda *_: None, "rolling log-likelihoods", disable_tqdm)
        for i, (log_likelihood, _) in zip(request_of_window, answers, strict=True):
            totals[i] += log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        # requests with equal settings are generated together
        by_settings: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {}
        for i, request in enumerate(requests):
            context, kwargs = request.arguments
            key = json.dumps(kwargs, sort_keys=True)
            by_settings.setdefault(key, {})[i] = context, kwargs
        texts = [""] * len(requests)
        with ProgressBar(
            total=len(requests), desc="generations", unit=" requests", disable=disable_tqdm
        ) as progress:

            def on_text(i: int, text: str) -> None:
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
                progress.update()

            for members in by_settings.values():
                contexts = {i: context for i, (context, _) in members.items()}
                _, kwargs = next(iter(members.values()))
                self._generate(contexts, kwargs, on_text)
        return texts

    def _generate(
        self,
        contexts: dict[int, str],
        generation_kwargs: dict[str, Any],
        on_text: Callable[[int, str], None],
    ) -> None:
        """Generates from each context with the same settings; on_text is called for each text."""
        kwargs: dict[str, Any] = {**normalize_gen_kwargs(generation_kwargs, DEFAULT_NEW_TOKENS)}
        unknown = sorted(kwargs.keys() - set(GENERATION_KEYS))
        if unknown:
            raise InputError(
                f"generation_kwargs has {unknown[0]!r}; t6jax takes {', '.join(GENERATION_KEYS)}"
            )
        until = handle_stop_sequences(kwargs.get("until"), eos=None)
        new_tokens = kwargs["max_gen_toks"]
        room = self.max_length - new_tokens
        if room < 1:
            raise InputError(
                f"max_gen_toks={new_tokens} leaves no room for a context in the model's window of "
                f"{self.max_length} tokens: lower it in the task's generation_kwargs or with "
                "--gen_kwargs"
            )
        options = {
            "stop_tokens": (self.eot_token_id,),
            "vocab_size": self._tokens.vocab_size,
            "max_length": self.max_length,
        }
        if kwargs["do_sample"]:
            options |= {"temperature": 1.0} | {
                key: kwargs[key] for key in ("temperature", "top_k", "top_p") if key in kwargs
            }

        prompts = {
            i: self.tok_encode(context)[-room:] or [self.eot_token_id]
            for i, context in contexts.items()
        }
        longest_first = sorted(prompts, key=lambda i: -len(prompts[i]))
        models = self._decoders
        largest = max(1, self.scorer.batch_tokens // self.max_length)
        size = min(largest, -(-len(longest_first) // len(models)))
        batches = [
            longest_first[start : start + size] for start in range(0, len(longest_first), size)
        ]

        def generate_on(device: int) -> None:
            for seed, batch in list(enumerate(batches))[device :: len(models)]:
                # every batch has the same size, so that nothing is compiled again for the last one
                padded = [prompts[i] for i in batch] + [prompts[batch[-1]]] * (size - len(batch))
                tokens = stream(models[device], padded, new_tokens, seed=seed, **options)
                for i, text in zip(batch, self._texts(tokens, len(batch), until), strict=True):
                    on_text(i, text)

        with concurrent.futures.ThreadPoolExecutor(len(models)) as threads:
            list(threads.map(generate_on, range(len(models))))

    def _texts(self, stream: Iterable[list[list[int]]], rows: int, until: list[str]) -> list[str]:
        """The texts of the first rows of a stream of tokens, each up to its first stop sequence."""
        tokens: list[list[int]] = [[] for _ in range(rows)]
        stopped = [False] * rows
        for new in stream:
            steps = max(map(len, new))
            for row in range(rows):
                if not stopped[row]:
                    tokens[row] += new[row]
                    # a row with fewer new tokens than others has met a stop token
                    stopped[row] = len(new[row]) < steps or any(
                        stop and stop in self._text(tokens[row]) for stop in until
                    )
            if all(stopped):
                break
        return [postprocess_generated_text(self._text(row), until, None) for row in tokens]

    def _text(self, tokens: list[int]) -> str:
        return self._tokens.decode(tokens).decode("utf-8", "replace")

    @functools.cached_property
    def _decoders(self) -> list[T6]:
        """The model in the form that decodes fastest, one copy for each device."""
        graph, state = nnx.split(nnx.jit(lambda model: model.unstacked())(self.scorer.model))

        def copy_on(device: int) -> T6:
            return nnx.merge(
                graph, jax.tree.map(lambda x: x.addressable_shards[device].data, state)
            )

        return [copy_on(device) for device in range(len(jax.local_devices()))]


# not as a decorator, which would hide the class's type
register_model("t6jax")(T6LM)


def refuse_chat_template() -> NoReturn:
    """Refuses a chat template.

    Raises:
      InputError: always; t6jax does not train chat models.
    """
    raise InputError(
        "--apply_chat_template: a t6jax checkpoint has no chat template; leave the flag out"
    )

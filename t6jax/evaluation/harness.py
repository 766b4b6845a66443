"""A checkpoint as a model of lm-evaluation-harness, under the name t6jax."""

import concurrent.futures
import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from t6jax.data.corpus import run_tokenizer
from t6jax.data.tokenizers import Tokenizer
from t6jax.errors import InputError
from t6jax.evaluation.packing import Request
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
    from tqdm import tqdm

DEFAULT_NEW_TOKENS = 256  # of a generation whose task names no number, as in the harness
MODEL_ARGS = ("ckpt", "max_length", "add_bos_token", "batch_tokens")
GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@register_model("t6jax")
class T6LM(TemplateLM):
    """What a task asks of a model, answered as the harness's own Hugging Face model answers it.

    ckpt: a run's directory, or one step's.
    max_length: tokens of the model's window, default its context_length.
    add_bos_token: begins every context with the tokenizer's document_start.
    batch_tokens: tokens that a device takes at a time, default by the kind of device; this stands
        in for the harness's batch_size and max_batch_size, which are passed over. JAX chooses the
        devices, all there are.
    """

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
        self._start(model, tokenizer, info, max_length, add_bos_token, batch_tokens)

    @classmethod
    def of(
        cls,
        model: T6,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> "T6LM":
        """A model that is in memory."""
        lm = cls.__new__(cls)
        lm._start(model, tokenizer, {}, max_length, False, batch_tokens)
        return lm

    def _start(
        self,
        model: T6,
        tokenizer: Tokenizer,
        info: dict[str, Any],
        max_length: int | None,
        add_bos_token: bool,
        batch_tokens: int | None,
    ) -> None:
        super().__init__()
        # the harness's bootstrap forks, which a process with JAX's threads may not live through
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        self._tokens = tokenizer
        self._add_bos_token = add_bos_token
        self._info = info | {
            "model_dtype": model.config.dtype,
            "context_length": model.config.context_length,
        }
        self.scorer = Scorer(model, max_length=max_length, batch_tokens=batch_tokens)
        # the contexts of a question's answers come one behind another
        self._encoded = functools.lru_cache(maxsize=64)(
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
        """What the harness writes beside its results."""
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
        special = (
            self._add_bos_token
            if add_special_tokens is None
            else add_special_tokens and self._add_bos_token
        )
        return [self.eot_token_id] * special + self._encoded(string)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **options,
    ) -> list[tuple[float, bool]]:
        def keep(i: int, answer: tuple[float, bool]) -> None:
            if requests[i][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)

        pairs = [Request(context, continuation) for _, context, continuation in requests]
        return self._scores(pairs, keep, "log-likelihoods", disable_tqdm)

    def _scores(
        self,
        requests: Sequence[Request],
        keep: Callable[[int, tuple[float, bool]], None],
        what: str,
        quiet: bool,
    ) -> list[tuple[float, bool]]:
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc=what, unit=" requests", disable=quiet) as progress:
            for finished in self.scorer.stream(requests):
                for i, score in finished:
                    answers[i] = tuple(score)
                    keep(i, answers[i])
                progress.update(len(finished))
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows, owners = [], []
        for i, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            pieces = get_rolling_token_windows(
                tokens, self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for window in map(make_disjoint_window, pieces):
                windows.append(Request(*window))
                owners.append(i)
        totals = [0.0] * len(requests)
        answers = self._scores(windows, lambda *_: None, "rolling log-likelihoods", disable_tqdm)
        for i, (log_likelihood, _) in zip(owners, answers, strict=True):
            totals[i] += log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        settings = [json.dumps(request.args[1], sort_keys=True) for request in requests]
        texts: list[str] = [""] * len(requests)
        with tqdm(
            total=len(requests), desc="generations", unit=" requests", disable=disable_tqdm
        ) as progress:
            for setting in dict.fromkeys(settings):
                mine = [i for i, other in enumerate(settings) if other == setting]

                def keep(i: int, text: str) -> None:
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    progress.update()

                self._generate(
                    {i: requests[i].args[0] for i in mine}, requests[mine[0]].args[1], keep
                )
        return texts

    def _generate(
        self, contexts: dict[int, str], kwargs: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        kwargs = normalize_gen_kwargs(kwargs, DEFAULT_NEW_TOKENS)
        unknown = sorted(kwargs.keys() - set(GENERATION_KEYS))
        if unknown:
            raise InputError(
                f"generation_kwargs has {unknown[0]!r}; t6jax takes {', '.join(GENERATION_KEYS)}"
            )
        until, new_tokens = (
            handle_stop_sequences(kwargs.get("until"), eos=None),
            kwargs["max_gen_toks"],
        )
        room = self.max_length - new_tokens
        if room < 1:
            raise InputError(
                f"max_gen_toks={new_tokens} leaves no room for a context in the model's window of "
                f"{self.max_length} tokens: "
                "lower it in the task's generation_kwargs or by --gen_kwargs"
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
        order = sorted(prompts, key=lambda i: -len(prompts[i]))
        models = self._decoders
        most = max(1, self.scorer.batch_tokens // self.max_length)
        rows = min(most, -(-len(order) // len(models)))
        batches = [order[start : start + rows] for start in range(0, len(order), rows)]

        def work(device: int) -> None:
            for seed, batch in list(enumerate(batches))[device :: len(models)]:
                # always as many prompts, so that nothing is compiled anew for the last ones
                filled = [prompts[i] for i in batch] + [prompts[batch[-1]]] * (rows - len(batch))
                made = self._until(
                    stream(models[device], filled, new_tokens, seed=seed, **options),
                    len(batch),
                    until,
                )
                for i, text in zip(batch, made, strict=True):
                    keep(i, text)

        with concurrent.futures.ThreadPoolExecutor(len(models)) as threads:
            list(threads.map(work, range(len(models))))

    def _until(self, pieces: Any, rows: int, until: list[str]) -> list[str]:
        """The texts of the first rows of a stream of tokens, each up to its first stop sequence."""
        tokens: list[list[int]] = [[] for _ in range(rows)]
        stopped = [False] * rows
        for new in pieces:
            made = max(map(len, new))
            for row in range(rows):
                if not stopped[row]:
                    tokens[row] += new[row]
                    # one that was given less than others has met a stop token
                    stopped[row] = len(new[row]) < made or any(
                        stop and stop in self._text(tokens[row]) for stop in until
                    )
            if all(stopped):
                break
        return [postprocess_generated_text(self._text(row), until, None) for row in tokens]

    def _text(self, tokens: list[int]) -> str:
        return self._tokens.decode(tokens).decode("utf-8", "replace")

    @functools.cached_property
    def _decoders(self) -> list[T6]:
        """The model in the form that decodes fastest, one for each device."""
        graph, state = nnx.split(nnx.jit(lambda model: model.unstacked())(self.scorer.model))
        on_device = lambda d: jax.tree.map(lambda x: x.addressable_shards[d].data, state)
        return [nnx.merge(graph, on_device(d)) for d in range(len(jax.local_devices()))]


def refuse_chat_template() -> str:
    """Raises InputError: what t6jax trains are no chat models."""
    raise InputError(
        "--apply_chat_template: a t6jax checkpoint has no chat template; leave the flag out"
    )

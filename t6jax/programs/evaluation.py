"""What eval.py calls. The flags' paths are checked before this module, and JAX, are imported."""

import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
from flax import nnx
from tqdm import tqdm

from t6jax.config import DataConfig
from t6jax.data.batches import ValidationBatches, validation_batches
from t6jax.data.corpus import kept_path, load_corpus, run_tokenizer
from t6jax.data.manifest import check_data, read_manifest, validation_bytes_per_token
from t6jax.data.shards import find_shards, write_shard
from t6jax.data.sources import read_texts
from t6jax.errors import InputError
from t6jax.evaluation.bits_per_byte import sliding_windows, total_nats
from t6jax.evaluation.scoring import Scorer
from t6jax.evaluation.validation import entropies, make_loss_sums, report, validation_loss
from t6jax.loading import load
from t6jax.runs import locate, read_data_config


def eval_program(
    ckpt: str, data: str | None, batch_size: int, batches: int | None, text_key: str | None = None
) -> int:
    """Prints the validation loss of a checkpoint next to the entropies of the same text under the
    run's training counts.

    Args:
        ckpt: a run's directory, or one step's.
        data: other text, all of it, read as training reads it, or other shards, those for
            validation; None: the run's own validation data.
        batch_size: sequences in a batch.
        batches: at most so many of them; None: all.
        text_key: of other text in JSONL or Parquet; None: the run's own.
    """
    workdir, _ = locate(ckpt)
    data_config = read_data_config(workdir)
    _note(f"loading {ckpt} ...")
    model, config = load(ckpt)
    try:
        own = load_corpus(workdir, data_config, config.vocab_size)
    except InputError:
        if data is None:
            raise
        own = None  # a run whose data has gone can still be evaluated on other data
    with tempfile.TemporaryDirectory() as scratch:
        if own and data is None:
            sources, bytes_per_token = own.sources, own.bytes_per_token
        else:
            assert data is not None, "without data of its own, the run was refused above"
            if text_key is not None:
                data_config = dataclasses.replace(data_config, text_key=text_key)
            folder, bytes_per_token = _other_data(
                workdir, data_config, data, pathlib.Path(scratch), config.vocab_size
            )
            sources = [(folder, 1.0)]

        def validation_set() -> ValidationBatches:
            return validation_batches(
                sources,
                batch_size=batch_size,
                context_length=config.context_length,
                vocab_size=config.vocab_size,
                max_batches=batches,
            )

        graph, state = nnx.split(model)
        masked = (
            run_tokenizer(workdir, data_config).document_start
            if data_config.document_masking
            else None
        )
        rows = validation_set()
        tokens = len(rows) * batch_size * config.context_length
        _note(f"compiling, then evaluating {tokens:,} tokens or a little fewer ...")
        # a bar on a terminal, with the rate and the time that is left
        with tqdm(rows, total=len(rows), unit="batch", disable=None) as bar:
            loss, tokens = validation_loss(
                make_loss_sums(graph, masked), nnx.to_pure_dict(state), bar
            )
        baseline = entropies(own.sources, config.vocab_size, validation_set()) if own else None
        print(report(loss, tokens, baseline, bytes_per_token))
    return 0


def bpb_program(ckpt: str, path: str, stride: int | None, text_key: str | None = None) -> int:
    """Prints nats a token, bits a byte and perplexity of a text, or of all texts of a folder, by
    sliding windows.

    Args:
        ckpt: a run's directory, or one step's.
        path: the texts, read as training reads them.
        stride: tokens that a window moves by; None: half of the model's window.
        text_key: of JSONL or Parquet; None: the run's own.
    """
    workdir, _ = locate(ckpt)
    model, config = load(ckpt)
    data_config = read_data_config(workdir)
    tokenizer = run_tokenizer(workdir, data_config)
    scorer = Scorer(model)
    stride = max(1, config.context_length // 2) if stride is None else stride
    if stride > config.context_length:
        raise InputError(
            f"--stride={stride} exceeds the model's context_length={config.context_length}: a "
            "window would leave text out"
        )
    texts = [*read_texts(path, data_config.text_key if text_key is None else text_key)]
    encoded = [tokenizer.encode(text) for text in texts]
    count = sum(map(len, encoded))
    windows = (
        w
        for t in encoded
        for w in sliding_windows(
            t.tolist(), tokenizer.document_start, config.context_length, stride
        )
    )
    _note(f"compiling, then scoring {count:,} tokens ...")
    nats = total_nats(scorer, windows, count)
    print(
        f"{len(texts)} texts, {sum(map(len, texts)):,} bytes, {count:,} tokens; windows of "
        f"{config.context_length} by {stride}"
    )
    print(report(nats / count, count, None, sum(map(len, texts)) / count))
    return 0


def _note(text: str) -> None:
    """Says what takes time, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _other_data(
    workdir: pathlib.Path, config: DataConfig, data: str, scratch: pathlib.Path, vocab_size: int
) -> tuple[pathlib.Path, float | None]:
    """(a folder with shards for validation, bytes a token where known)."""
    path = pathlib.Path(data)
    if path.is_dir() and any(path.glob("*.bin")):
        find_shards(path, "val")
        manifest = read_manifest(path) and check_data(
            path, kept_path(workdir, config.tokenizer), vocab_size
        )
        return path, validation_bytes_per_token(manifest)
    tokenizer = run_tokenizer(workdir, config)
    texts = [*read_texts(data, config.text_key)]
    tokens = np.concatenate(
        [np.append(tokenizer.document_start, tokenizer.encode(text)) for text in texts]
    )
    write_shard(scratch / "val_000000.bin", tokens)
    return scratch, sum(map(len, texts)) / len(tokens)

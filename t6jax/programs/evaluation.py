"""What eval.py calls."""

import pathlib
import tempfile

from flax import nnx

from t6jax.data.batches import validation_batches
from t6jax.data.corpus import kept_path, load_corpus
from t6jax.data.prepare import prepare
from t6jax.errors import InputError
from t6jax.evaluation.validation import entropies, make_loss_sums, report, validation_loss
from t6jax.runs import load, locate, read_config


def eval_program(ckpt: str, data: str | None, batch_size: int, batches: int | None) -> int:
    """Prints the validation loss of a checkpoint beside the entropies of the same text."""
    workdir, _ = locate(ckpt)
    settings = read_config(workdir)["data"]
    with tempfile.TemporaryDirectory() as scratch:
        if data is not None:
            settings = settings | {"path": data, "mixture": {}}
            if not pathlib.Path(data).exists():
                raise InputError(f"there is no data in {data}: give --data=FOLDER of token shards, or a text file or folder")
            if pathlib.Path(data).is_file() or not any(pathlib.Path(data).glob("*.bin")):
                prepared, tokenizer = pathlib.Path(scratch, "data"), kept_path(workdir, settings["tokenizer"])
                prepare(data, prepared, tokenizer, settings["validation_fraction"])
                settings["path"] = str(prepared)
        model, config = load(ckpt)
        corpus = load_corpus(workdir, settings, config.vocab_size)
        validation_set = lambda: validation_batches(
            corpus.sources,
            batch_size=batch_size,
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            max_batches=batches,
        )
        graph, state = nnx.split(model)
        masked = corpus.document_start if settings.get("document_masking") else None
        loss = validation_loss(make_loss_sums(graph, masked), nnx.to_pure_dict(state), validation_set())
        print(report(loss, entropies(corpus.sources, config.vocab_size, validation_set()), corpus.bytes_per_token))
    return 0

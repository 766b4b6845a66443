"""What eval.py calls."""

import pathlib
import tempfile

from flax import nnx

from t6jax.data.batches import validation_batches
from t6jax.data.prepare import check_data, prepare
from t6jax.errors import InputError
from t6jax.evaluation.validation import entropies, make_loss_sums, report, validation_loss
from t6jax.runs import data_folder, load, locate, read_config


def eval_program(ckpt: str, data: str | None, batch_size: int, batches: int | None) -> int:
    """Prints the validation loss of a checkpoint beside the entropies of the same text."""
    workdir, _ = locate(ckpt)
    settings = read_config(workdir)["data"]
    folder = data_folder(workdir, settings) if data is None else pathlib.Path(data)
    if not folder.exists():
        raise InputError(f"there is no data in {folder}: give --data=FOLDER of token shards, or a text file or folder")
    with tempfile.TemporaryDirectory() as scratch:
        if folder.is_file() or not any(folder.glob("*.bin")):
            prepared = pathlib.Path(scratch, "data")
            prepare(str(folder), prepared, settings["tokenizer"], settings["validation_fraction"])
            folder = prepared
        model, config = load(ckpt)
        manifest = check_data(folder, settings["tokenizer"], config.vocab_size)
        validation_set = lambda: validation_batches(
            folder,
            batch_size=batch_size,
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            max_batches=batches,
        )
        graph, state = nnx.split(model)
        loss = validation_loss(make_loss_sums(graph), nnx.to_pure_dict(state), validation_set())
        bytes_per_token = manifest["val"]["bytes"] / manifest["val"]["tokens"] if manifest else None
        print(report(loss, entropies(folder, config.vocab_size, validation_set()), bytes_per_token))
    return 0

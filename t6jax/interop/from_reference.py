"""A published PyTorch checkpoint to a run's directory, for eval.py and generate.py.

usage: python -m t6jax.interop.from_reference CHECKPOINT_DIR OUT_DIR [--rope_table_dtype=bfloat16]
    [--tokenizer=gpt2]
"""

import pathlib
import pickle
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from t6jax.command_line import Parser, run
from t6jax.config import DTYPES
from t6jax.data.tokenizers import NAMES, get_tokenizer
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.files import atomic_folder, read_json
from t6jax.interop.reference import from_reference
from t6jax.runs import CHECKPOINTS, PARAMETERS, write_checksums, write_config

with needs("interop"):
    from safetensors import SafetensorError
    from safetensors.flax import load_file

STEP = "0"  # a published checkpoint does not say how long it was trained


def convert(
    checkpoint: pathlib.Path, out: pathlib.Path, *, rope_table_dtype: str, tokenizer: str
) -> str:
    """Writes a published checkpoint as a run's directory, which is complete or absent.

    Args:
      checkpoint: the folder of the published checkpoint.
      out: the run's directory; it must not exist, or be empty.
      rope_table_dtype: the dtype that RoPE's cosines and sines are rounded to.
      tokenizer: "gpt2", "bytes", or the path of a tokenizer's file.

    Returns:
      A line that says what was converted.

    Raises:
      InputError: if something cannot be read, or `out` is not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already: name a folder that does not, or an empty one")
    model = from_reference(
        read_parameters(checkpoint),
        read_json(checkpoint / "config.json"),
        jnp.dtype(rope_table_dtype),
    )
    # there is no data; eval.py takes --data
    data = {
        "path": "",
        "source": "",
        "tokenizer": tokenizer,
        "validation_fraction": 0.01,
        "num_workers": 0,
    }
    with atomic_folder(out) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            path = (folder / CHECKPOINTS / STEP / PARAMETERS).absolute()
            checkpointer.save(path, nnx.to_pure_dict(nnx.state(model)))
        if tokenizer not in NAMES:
            get_tokenizer(tokenizer).save(folder)
        config = {"model": model.config.to_dict(), "data": data}
        write_checksums(folder / CHECKPOINTS / STEP, config)
        write_config(folder, config)
    return f"{out}: {model.config.attention.name}, {model.config.parameter_count:,} parameters"


def read_parameters(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters in a published checkpoint's folder, by their published names.

    They are in one file, or in the files that an index lists.

    Raises:
      InputError: if there are none, or a file is broken.
    """
    for name, read in READERS.items():
        path, index = checkpoint / name, checkpoint / f"{name}.index.json"
        if path.is_file():
            return read(path)
        if index.is_file():
            return {name: x for file in _indexed_files(index) for name, x in read(file).items()}
    raise InputError(
        f"{checkpoint} has neither {' nor '.join(READERS)}: name the folder of a published "
        "checkpoint"
    )


def _indexed_files(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index lists; they are in the same folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(n, str) and n == pathlib.Path(n).name for n in names.values()
    ):
        raise InputError(f"{index} must map parameters to files next to it under weight_map")
    return [index.parent / name for name in sorted(set(names.values()))]


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file.

    Raises:
      InputError: if it is broken.
    """
    try:
        return {name: np.asarray(value) for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path} is not a complete safetensors file: {e}") from e


def read_bin(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a PyTorch file of tensors; anything else in its pickle is refused, not run.

    Raises:
      InputError: if PyTorch is missing, or the file is broken or holds anything but tensors.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports] # optional
    except ImportError as e:
        raise InputError(
            f"{path} needs PyTorch to be read: pip install torch, or give model.safetensors"
        ) from e
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(f"{path} is not a complete file of plain PyTorch tensors: {reason}") from e
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise InputError(f"{path} must hold a dict of tensors under their parameters' names")

    def to_numpy(x: "torch.Tensor") -> np.ndarray:
        x = x.detach().contiguous()
        if x.dtype != torch.bfloat16:
            return x.numpy()
        return x.float().numpy().astype(jnp.bfloat16)  # exact; PyTorch cannot give bfloat16

    return {name: to_numpy(x) for name, x in state.items()}


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    "model.safetensors": read_safetensors,
    "pytorch_model.bin": read_bin,
}


def main(arguments: list[str]) -> None:
    parser = Parser(
        "t6jax.interop.from_reference",
        "Turns a published PyTorch checkpoint into a run's directory.",
    )
    add = parser.add_argument
    add("checkpoint", type=pathlib.Path, help="the folder of the published checkpoint")
    add("out", type=pathlib.Path, help="the run's directory to make")
    add(
        "--rope_table_dtype",
        choices=sorted(DTYPES),
        default="bfloat16",  # the published code rounds the tables so, and trained with it
        help="what RoPE's cosines and sines are rounded to",
    )
    add(
        "--tokenizer",
        default="gpt2",
        help="what the checkpoint was trained with: gpt2, bytes, or the path of its file",
    )
    args = parser.parse_args(arguments)
    print(
        convert(
            args.checkpoint,
            args.out,
            rope_table_dtype=args.rope_table_dtype,
            tokenizer=args.tokenizer,
        )
    )


if __name__ == "__main__":
    run(main)

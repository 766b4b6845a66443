"""A run's directory: config.json, data/ (shards prepared for it), checkpoints/<step>/,
metrics.jsonl, tensorboard/. Nothing here imports JAX: paths are checked before that.
"""

import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from t6jax.checksums import NAME, ChecksumError, Checksums, Hasher
from t6jax.config import DataConfig, ModelConfig
from t6jax.config.urls import without_secrets
from t6jax.errors import InputError
from t6jax.fields import Section
from t6jax.files import read_json, write_atomically

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
# the items of a checkpoint; evaluation and generation read the parameters alone
PARAMETERS, TRAINING, BATCHES = "parameters", "training", "batches"


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json atomically; URLs without user info and query."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / CONFIG, json.dumps(without_secrets(config), indent=2) + "\n")


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """config.json of a run, as it is: keys that came later are not in it.

    Raises:
        InputError: the directory or its config is missing or broken.
    """
    path = workdir / CONFIG
    if not workdir.is_dir():
        raise InputError(f"{workdir}: there is no such run directory")
    if not path.exists():
        raise InputError(
            f"{workdir} is no run directory: it has no {CONFIG}; name the --workdir of a training "
            "run"
        )
    return read_json(path)


def read_model_config(workdir: pathlib.Path) -> ModelConfig:
    """The model of a run. Raises InputError if its config is missing, broken or refused."""
    return _read_section(workdir, ModelConfig)


def read_data_config(workdir: pathlib.Path) -> DataConfig:
    """The data of a run. Raises InputError if its config is missing, broken or refused."""
    return _read_section(workdir, DataConfig)


def _read_section[S: Section](workdir: pathlib.Path, section: type[S]) -> S:
    config: Any = read_config(workdir).get(section.section)
    try:
        return section.from_dict(config)
    except InputError as e:
        raise InputError(f"{workdir / CONFIG}: {e}") from e


def locate(ckpt: str | pathlib.Path) -> tuple[pathlib.Path, list[int]]:
    """(run's directory, its steps to try, newest first) for a run's directory or one step's.

    Raises InputError where there is no checkpoint.
    """
    if not isinstance(ckpt, str | os.PathLike):
        raise InputError(f"a checkpoint is named by the path of its run or step; got {ckpt!r}")
    path = pathlib.Path(ckpt)
    if path.parent.name == CHECKPOINTS and _is_step(path.name):
        if not path.is_dir():
            raise InputError(f"{path}: there is no such checkpoint")
        return path.parent.parent, [int(path.name)]
    if not path.exists():
        raise InputError(f"{path}: there is no such run directory or checkpoint")
    read_config(path)
    steps = checkpoint_steps(path)
    if not steps:
        raise InputError(f"{path} has no checkpoint yet: nothing in {path / CHECKPOINTS}")
    return path, steps


def require_path(flag: str, path: str | None) -> None:
    """Raises InputError if a flag names a path where there is nothing."""
    if path == "":  # as from an empty variable of the shell
        raise InputError(f"{flag}= is empty: name a file or folder, or leave it out")
    if path is not None and not pathlib.Path(path).exists():
        raise InputError(f"{flag}={path}: there is no such file or folder")


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """The steps with a finished checkpoint, newest first."""
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        return []
    # Orbax writes a step under a temporary name, which is no number, and renames it when it is
    # whole
    return sorted(
        (int(p.name) for p in folder.iterdir() if p.is_dir() and _is_step(p.name)), reverse=True
    )


def _is_step(name: str) -> bool:
    """Whether a folder's name is a step as Orbax writes it: "007" and "²" are numbers, and none."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def write_checksums(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes the checksums of a step's folder that is whole, with its config."""
    about = {"step": int(folder.name), "config": config}
    Hasher(folder).finish(folder, about).write(folder)


def read_checksums(folder: pathlib.Path) -> Checksums | None:
    """The checksums of a step's folder. An older checkpoint has none, which a warning says.

    Raises:
        ChecksumError: they are damaged, or those of another step.
    """
    found = Checksums.read(folder)
    if found is None:
        _warn(
            f"checkpoint {folder} has no {NAME}, as those of older versions: it is read unchecked"
        )
    elif found.about["step"] != int(folder.name):
        raise ChecksumError(f"it was saved as step {found.about['step']}")
    return found


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def restore_newest[T](
    workdir: pathlib.Path, steps: list[int], restore: Callable[[int], T]
) -> tuple[int, T]:
    """(step, restore(step)) of the newest step that can be read; a warning names each that cannot.

    Raises InputError where none can.
    """
    for step in steps:
        path = workdir / CHECKPOINTS / str(step)
        try:
            return step, restore(step)
        except (MemoryError, InputError):  # says nothing of the files
            raise
        except PermissionError as e:
            raise InputError(
                f"checkpoint {path} cannot be read ({e}): give yourself permission to read it"
            ) from e
        except ChecksumError as e:
            _warn(f"checkpoint {path} is damaged and is passed over: {e}")
        except (
            Exception
        ) as e:  # whatever Orbax and TensorStore raise for damaged files: no one class covers it
            if "RESOURCE_EXHAUSTED" in str(e):
                raise
            reason = (
                f"{type(e).__name__}: "
                f"{str(e).strip().splitlines()[0][:200] if str(e).strip() else ''}"
            )
            _warn(f"checkpoint {path} cannot be read and is passed over ({reason})")
    raise InputError(f"no checkpoint in {workdir / CHECKPOINTS} can be read")

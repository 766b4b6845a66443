"""Checks every byte of a folder of shards against its manifest.

usage: python -m t6jax.data.verify FOLDER [--workers=N]
"""

import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from t6jax.command_line import Parser, run
from t6jax.data.manifest import check_counts, read_manifest
from t6jax.data.shards import shard_header
from t6jax.errors import InputError


def verify(folder: pathlib.Path, workers: int = 1) -> Iterator[str]:
    """Yields a sentence for each thing that is wrong with a folder of shards.

    Args:
        folder: the shards.
        workers: files read at once.

    Raises:
        InputError: if there is no folder, or no shard in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    manifest = read_manifest(folder)
    shards = (
        {s["file"]: s for split in ("train", "val") for s in manifest[split]["shards"]}
        if manifest
        else {}
    )
    names = sorted(shards.keys() | {p.name for p in folder.glob("*.bin")})
    if not names:
        raise InputError(f"{folder} holds no shard")
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(
            lambda name: _check(folder / name, shards.get(name), manifest is not None), names
        )
        yield from (sentence for sentence in found if sentence)


def _check(path: pathlib.Path, listed: dict | None, has_manifest: bool) -> str | None:
    try:
        _, count = shard_header(path)
        if has_manifest:
            one = {"train": {"shards": [listed] if listed else []}, "val": {"shards": []}}
            check_counts(path.parent, one, {path.name: count})
    except InputError as e:
        return str(e)
    if listed and "sha256" in listed:
        with path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != listed["sha256"]:
                return (
                    f"{path} is damaged: its bytes do not have the manifest's SHA-256; "
                    "prepare or download it again"
                )
    return None


def main(arguments: list[str]) -> int:
    parser = Parser("t6jax.data.verify", __doc__)
    parser.add_argument("folder", type=pathlib.Path, help="the folder of shards")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="files read at once"
    )
    args = parser.parse_args(arguments)
    wrong = 0
    for sentence in verify(args.folder, args.workers):
        print(f"error: {sentence}", file=sys.stderr)
        wrong += 1
    if not wrong:
        shards = len([*args.folder.glob("*.bin")])
        checked = "every byte is as prepared"
        if read_manifest(args.folder) is None:
            checked = "the sizes are right; without a manifest the bytes cannot be checked"
        print(f"{shards} shards: {checked}")
    return 1 if wrong else 0


if __name__ == "__main__":
    run(main)

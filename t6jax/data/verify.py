"""Checks every byte of a folder of shards against its manifest.

usage: python -m t6jax.data.verify FOLDER [--workers=N] [--repair]
"""

import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from t6jax.command_line import Parser, path_argument, run
from t6jax.data.manifest import (
    check_counts,
    check_kept_tokenizer,
    listed_shards,
    read_manifest,
)
from t6jax.data.shards import CHECKED_BYTES, block_checksums, shard_header
from t6jax.errors import InputError
from t6jax.files import open_regular, read_regular, write_atomically

READ_BYTES = 2**10 * CHECKED_BYTES


def verify(folder: pathlib.Path, workers: int = 1, *, repair: bool = False) -> Iterator[str]:
    """Yields a sentence for each thing that is wrong with a folder of shards.

    What the manifest has no SHA-256 of is not checked, and no sentence says so.

    Args:
        folder: the shards.
        workers: files read at once.
        repair: write checksums again, of shards that are whole.

    Raises:
        InputError: if there is no folder, or no shard in it.
    """
    if workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    manifest = read_manifest(folder)
    listed = listed_shards(manifest) if manifest else {}
    names = sorted(listed.keys() | {p.name for p in folder.glob("*.bin")})
    if not names:
        raise InputError(f"{folder} holds no shard")
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(
            lambda name: _wrong(folder / name, listed.get(name), manifest is not None, repair),
            names,
        )
        yield from (sentence for sentence in found if sentence)
    if manifest:
        try:
            check_kept_tokenizer(folder, manifest)
        except InputError as e:
            yield str(e)


def _wrong(
    path: pathlib.Path, listed: Mapping[str, Any] | None, has_manifest: bool, repair: bool
) -> str | None:
    try:
        _, count = shard_header(path)
        if has_manifest:
            one = {"train": {"shards": [listed] if listed else []}, "val": {"shards": []}}
            check_counts(path.parent, one, {path.name: count})
        _check_bytes(path, listed or {}, repair)
    except InputError as e:
        return str(e)
    return None


def _check_bytes(path: pathlib.Path, listed: Mapping[str, Any], repair: bool) -> None:
    """Checks a shard against its SHA-256, and its .crc32 file against the shard."""
    digest, blocks = hashlib.sha256(), []
    with open_regular(path) as file:
        try:
            while data := file.read(READ_BYTES):
                digest.update(data)
                blocks.append(block_checksums(data))
        except OSError as e:
            raise InputError(f"{path} cannot be read ({e.strerror}): check the disk") from e
    made_here = "sha256" in listed
    if made_here and digest.hexdigest() != listed["sha256"]:
        raise InputError(
            f"{path} is damaged: its bytes do not have the manifest's SHA-256; "
            "prepare or download it again"
        )
    sums, checksums = path.with_suffix(".crc32"), b"".join(blocks)
    fits = sums.exists() and read_regular(sums) == checksums
    if not made_here:
        if sums.exists() and not fits:
            raise InputError(
                f"{path} or {sums.name} is damaged: they do not match; prepare or download both "
                "again"
            )
        return
    if not fits:
        if repair:
            write_atomically(sums, checksums)
            return
        what = "is damaged, or another shard's" if sums.exists() else "is missing"
        raise InputError(
            f"{sums} {what}, but {path.name} is whole: python -m t6jax.data.verify {path.parent} "
            "--repair writes it again"
        )


def main(arguments: list[str]) -> int:
    parser = Parser("t6jax.data.verify", __doc__)
    parser.add_argument("folder", type=path_argument, help="the folder of shards")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="files read at once"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="write missing or damaged .crc32 files again, of shards that are whole",
    )
    args = parser.parse_args(arguments)
    wrong = 0
    for sentence in verify(args.folder, args.workers, repair=args.repair):
        print(f"error: {sentence}", file=sys.stderr)
        wrong += 1
    if not wrong:
        print(f"{len([*args.folder.glob('*.bin')])} shards: {_checked(args.folder)}")
    return 1 if wrong else 0


def _checked(folder: pathlib.Path) -> str:
    """What it means that nothing is wrong."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "the sizes are right; without a manifest the bytes cannot be checked"
    if not all("sha256" in shard for shard in listed_shards(manifest).values()):
        return "the sizes are right; the manifest has no SHA-256 of the bytes"
    return "every byte is as prepared"


if __name__ == "__main__":
    run(main)

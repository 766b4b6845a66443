"""Documents to a folder of token shards with a manifest.

usage: python -m t6jax.data.prepare --source=SOURCE --out=FOLDER [--subset=NAME] [--tokenizer=NAME
    or PATH] [--workers=N] ...

Interrupted at any point, the same command goes on. The shards are the same bytes whatever the
number of workers.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from t6jax.data.executors import EXECUTORS, Producer, check_executor, make_producer
from t6jax.data.manifest import FORMAT, MANIFEST, read_manifest
from t6jax.data.merge import STATE, Merger
from t6jax.data.parts import PARTS, PLAN, TOKENIZER_NAME, part_path, read_part
from t6jax.data.shards import version_for
from t6jax.data.sources import UNIT_BYTES, Plan, make_plan
from t6jax.data.tokenizers import Tokenizer, get_tokenizer
from t6jax.errors import InputError
from t6jax.files import exclusive_lock, write_atomically

SHARD_TOKENS = 10**8
SETTINGS = "settings.json"
LOCK = "lock"
WORKING_FILES = (PARTS, PLAN, TOKENIZER_NAME, STATE, SETTINGS, LOCK, "datatrove")


def prepare(
    source: str,
    out: pathlib.Path,
    tokenizer_name: str,
    validation_fraction: float,
    shard_tokens: int = SHARD_TOKENS,
    *,
    subset: str = "",
    workers: int = 1,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    unit_bytes: int = UNIT_BYTES,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Tokenizes a source (see `make_plan`) into shards in `out`; returns the manifest.

    The work is done in a folder beside `out`, OUT.partial, which is renamed at the end: `out` is
    there whole, or not at all. What an interrupted preparation with the same arguments left there
    is gone on with.

    The first shard is for validation; of text files that is a fraction of them, drawn by file, but
    at most a shard.
    workers, executor, executor_options: who does it (see `make_producer`). unit_bytes: of text
        tokenized at once.
    say: takes lines of progress.
    """
    check_executor(executor, workers)
    if shard_tokens < 2:
        raise InputError(f"--shard_tokens must be at least 2; got {shard_tokens}")
    tokenizer = get_tokenizer(tokenizer_name)
    settings = {
        "source": source,
        "subset": subset,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "validation_fraction": validation_fraction,
        "shard_tokens": shard_tokens,
        "unit_bytes": unit_bytes,
    }
    if out.exists():
        return _prepared(out, settings)
    work = out.with_name(out.name + ".partial")
    plan = _kept_plan(work, settings) or make_plan(
        source,
        subset,
        validation_fraction=validation_fraction,
        validation_bytes=shard_tokens,
        unit_bytes=unit_bytes,
    )
    work.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(work / LOCK, f"another process is preparing {work}: wait for it to end"):
        for path in work.glob("*.partial"):  # what a kill cut short
            path.unlink()
        if not (work / MANIFEST).exists():
            _start(work, settings, plan, tokenizer, say)
            merger = Merger(
                work,
                plan.validation_units,
                validation_fraction,
                version_for(tokenizer.vocab_size),
                shard_tokens,
            )
            if executor == "local":  # a process is not worth its start for little text
                workers = min(
                    workers, 1 + sum(unit.size for unit in plan.units) // (4 * unit_bytes)
                )
            producer = make_producer(executor, workers, executor_options or {})
            try:
                producer.start(work, merger.first_unit, len(plan.units))
                _merge(work, plan, producer, merger, say)
            finally:
                producer.stop()
            if not merger.splits["train"]["tokens"]:
                raise InputError(
                    f"{source!r} holds too little text to validate and to train on: "
                    f"{merger.tokens} tokens"
                )
            _write_manifest(work, settings, plan.revision, tokenizer, merger)
        for name in WORKING_FILES:
            path = work / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )
        work.rename(out)
    return _prepared(out, settings)


def _merge(
    work: pathlib.Path,
    plan: Plan,
    producer: Producer,
    merger: Merger,
    say: Callable[[str], None] | None,
) -> None:
    progress = _Progress(plan, merger, say)
    for index in range(merger.first_unit, len(plan.units)):
        while not producer.poll(work, index):
            time.sleep(0.02)
            progress.report(index)
        part = read_part(part_path(work, index))
        if part is None:
            part_path(work, index).unlink()
            raise InputError(
                f"{part_path(work, index)} was not whole, and is deleted: the same command makes "
                "it anew"
            )
        merger.add(index, part)
        progress.report(index + 1)
    merger.finish()


def _prepared(out: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest is None or manifest.get("settings") != settings:
        raise InputError(
            f"{out} exists, and was not prepared so: give another --out, or move it away"
        )
    return manifest


def _kept_plan(work: pathlib.Path, settings: Mapping[str, Any]) -> Plan | None:
    """The plan of an interrupted preparation, where it holds to a commit on the hub, which may have
    another by now.
    """
    if (
        not all((work / name).exists() for name in (SETTINGS, PLAN))
        or json.loads((work / SETTINGS).read_text()) != settings
    ):
        return None
    plan = Plan.from_json((work / PLAN).read_text())
    return plan if plan.revision else None


def _start(
    work: pathlib.Path,
    settings: Mapping[str, Any],
    plan: Plan,
    tokenizer: Tokenizer,
    say: Callable | None,
) -> None:
    """Writes down all that tokenizing a unit needs; or checks it, where an interrupted preparation
    left it.
    """
    found = work / SETTINGS
    if found.exists():
        previous = json.loads(found.read_text())
        changed = [
            f"{k} was {previous.get(k)!r}, now {v!r}"
            for k, v in settings.items()
            if previous.get(k) != v
        ]
        if changed:
            raise InputError(
                f"{work} holds an interrupted preparation of another kind ({'; '.join(changed)}): "
                "delete it first"
            )
        if (work / PLAN).read_text() != plan.to_json():
            raise InputError(
                f"the files of {settings['source']!r} changed since {work} was begun: delete it to "
                "start again"
            )
        if say:
            say(
                f"going on in {work}" + (f" with revision {plan.revision}" if plan.revision else "")
            )
        return
    (work / PARTS).mkdir(exist_ok=True)
    tokenizer.save(work)
    write_atomically(work / TOKENIZER_NAME, tokenizer.name)
    write_atomically(work / PLAN, plan.to_json())
    write_atomically(found, json.dumps(settings))  # last: where it is, the others are


def _write_manifest(
    work: pathlib.Path,
    settings: Mapping[str, Any],
    revision: str,
    tokenizer: Tokenizer,
    merger: Merger,
) -> None:
    manifest = {
        "format": FORMAT,
        "source": settings["source"],
        "subset": settings["subset"],
        **({"revision": revision} if revision else {}),
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "document_start": tokenizer.document_start,
        "settings": settings,
        **merger.splits,
    }
    write_atomically(work / MANIFEST, json.dumps(manifest, indent=2) + "\n")


class _Progress:
    """Lines of progress, one in ten seconds."""

    def __init__(self, plan: Plan, merger: Merger, say: Callable[[str], None] | None):
        self._plan, self._merger, self._say = plan, merger, say
        self._began = self._said = time.monotonic()
        self._begun_at = (merger.first_unit, merger.tokens)

    def report(self, units: int) -> None:
        now, last = time.monotonic(), units == len(self._plan.units)
        if not self._say or (now - self._said < 10 and not last):
            return
        self._said = now
        sizes = [unit.size for unit in self._plan.units]
        done, total, before = sum(sizes[:units]), sum(sizes), sum(sizes[: self._begun_at[0]])
        seconds = now - self._began
        rate = (self._merger.tokens - self._begun_at[1]) / seconds
        left = (
            f"{seconds * (total - done) / (done - before) / 60:,.1f} minutes left"
            if done > before
            else "..."
        )
        tokens = f"{self._merger.tokens / 1e6:,.1f} M tokens  {rate / 1e6:.2f} M tokens/s"
        self._say(f"{tokens}  {done / total:.1%} of the text  {left}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m t6jax.data.prepare", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--source",
        required=True,
        help='a file or folder of .parquet, .jsonl or text, "python", a URL, or a hub data set',
    )
    add(
        "--subset",
        default="",
        help="a configuration of a hub data set, such as sample-100BT, or a folder in the source",
    )
    add("--out", required=True, type=pathlib.Path, help="the folder to make")
    add(
        "--tokenizer",
        default="gpt2",
        help="gpt2, bytes, or the path of a .tiktoken file or a tokenizer.json; default gpt2",
    )
    add(
        "--validation_fraction",
        type=float,
        default=0.01,
        help="of text files, or of what fits in one shard; default 0.01",
    )
    add("--shard_tokens", type=int, default=SHARD_TOKENS, help="default 10^8")
    add(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes, or Slurm or Ray tasks at once; default all cores",
    )
    add(
        "--executor",
        default="local",
        help=f"{', '.join(EXECUTORS)}: datatrove runs the work there; default local",
    )
    add("--slurm_partition", help="with --executor=slurm")
    add(
        "--slurm_time",
        default="20:00:00",
        help="with --executor=slurm: a job's limit; default 20:00:00",
    )
    add(
        "--unit_bytes",
        type=int,
        default=UNIT_BYTES,
        help="of text that a worker tokenizes at once; default 16 MiB, 8 times that over a network",
    )
    args = vars(parser.parse_args(arguments))
    partition, limit = args.pop("slurm_partition"), args.pop("slurm_time")
    if args["executor"] == "slurm" and not partition:
        raise InputError("--executor=slurm needs --slurm_partition")
    options = {"partition": partition, "time": limit} if args["executor"] == "slurm" else {}
    out = args["out"]
    manifest = prepare(
        args.pop("source"),
        args.pop("out"),
        args.pop("tokenizer"),
        args.pop("validation_fraction"),
        executor_options=options,
        say=lambda text: print(text, flush=True),
        **args,
    )
    for split in ("train", "val"):
        held = manifest[split]
        print(
            f"{split}: {held['documents']:,} documents, {held['tokens']:,} tokens in "
            f"{len(held['shards'])} shard(s)"
        )
    print(f"prepared {out}")


if __name__ == "__main__":
    from t6jax.data.command_line import run

    run(main, sys.argv[1:])

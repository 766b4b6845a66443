"""Documents to a folder of token shards with a manifest.

usage: python -m t6jax.data.prepare --source=SOURCE --out=FOLDER [--subset=NAME] [--text_key=KEY]
    [--tokenizer=NAME or PATH] [--workers=N] ...

After an interruption the same command continues. The shards are the same bytes whatever the number
of workers.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t6jax.command_line import Parser, path_argument, run
from t6jax.data.executors import EXECUTORS, Producer, check_executor, make_producer
from t6jax.data.manifest import FORMAT, MANIFEST, read_manifest
from t6jax.data.records import TEXT_KEY
from t6jax.data.remote import shown
from t6jax.data.shard_writer import STATE, ShardWriter
from t6jax.data.shards import MAX_TOKENS, version_for
from t6jax.data.sources import REMOTE_UNITS, UNIT_BYTES, Plan, make_plan
from t6jax.data.tokenized import (
    PLAN,
    SETTINGS,
    TOKENIZED,
    load_unit,
    read_plan,
    read_settings,
    start_again,
    unit_path,
)
from t6jax.data.tokenizers import Tokenizer, get_tokenizer
from t6jax.errors import InputError
from t6jax.files import exclusive_lock, writing
from t6jax.sealed_json import write_sealed

SHARD_TOKENS = 10**8
LOCK = "lock"
WORKING_FILES = (TOKENIZED, PLAN, STATE, SETTINGS, "datatrove")


def prepare(
    source: str,
    out: pathlib.Path,
    tokenizer_name: str,
    validation_fraction: float,
    shard_tokens: int = SHARD_TOKENS,
    *,
    subset: str = "",
    text_key: str = TEXT_KEY,
    workers: int = 1,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    unit_bytes: int = UNIT_BYTES,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Tokenizes a source into shards in `out`.

    The work is done in the folder OUT.partial, which is renamed at the end, so `out` is complete
    whenever it exists. A preparation that was interrupted is continued if the arguments are the
    same.

    The first shard is for validation. For text files it holds a fraction of them, drawn by file, of
    at most a shard.

    Args:
        source, subset, text_key, unit_bytes: as `make_plan` takes them.
        out: the folder to make.
        tokenizer_name: as `get_tokenizer` takes it.
        validation_fraction: share of the bytes of text files, or of a source that fits in one
            shard.
        shard_tokens: tokens in a shard.
        workers, executor, executor_options: as `make_producer` takes them.
        say: is called with lines of progress.

    Returns:
        The manifest.

    Raises:
        InputError: if the source cannot be read, or `out` holds something else.
    """
    check_executor(executor, workers)
    if not 2 <= shard_tokens <= MAX_TOKENS:
        raise InputError(
            f"--shard_tokens must be at least 2 and at most {MAX_TOKENS:,}; got {shard_tokens}"
        )
    if out in (pathlib.Path(), pathlib.Path("/")):
        raise InputError(f"--out must name a folder to make; got {str(out)!r}")
    tokenizer = get_tokenizer(tokenizer_name)
    settings = {
        "source": shown(source),
        "subset": subset,
        # only where it is given: folders that were prepared before it existed stay valid
        **({"text_key": text_key} if text_key != TEXT_KEY else {}),
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
        text_key=text_key,
        left_out=(out, work),
    )
    with _working(work, out), writing(work):
        if out.exists():  # another process made it meanwhile
            (work / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder with something in it
                work.rmdir()
            return _prepared(out, settings)
        for path in work.glob("*.partial"):  # temporary files of a process that was killed
            path.unlink()
        if not (work / MANIFEST).exists():
            _start(work, settings, plan, tokenizer, say)
            writer = ShardWriter(
                work,
                plan.validation_units,
                validation_fraction,
                version_for(tokenizer.vocab_size),
                shard_tokens,
            )
            if executor == "local":  # little text is not worth the start of a process
                text_bytes = sum(unit.size for unit in plan.units)
                workers = min(workers, 1 + text_bytes // (4 * unit_bytes))
            producer = make_producer(executor, workers, executor_options or {})
            try:
                producer.start(work, writer.next_unit, len(plan.units))
                _write_shards(work, plan, producer, writer, say)
            finally:
                producer.stop()
            if not all(split["tokens"] for split in writer.splits.values()):
                raise InputError(
                    f"{shown(source)!r} holds too little text for training and validation: "
                    f"{writer.tokens} tokens"
                )
            _write_manifest(work, settings, plan.revision, tokenizer, writer)
        for name in WORKING_FILES:
            path = work / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        work.rename(out)
        # last, so that the folder that is renamed is never another process's
        (out / LOCK).unlink(missing_ok=True)
    return _prepared(out, settings)


@contextlib.contextmanager
def _working(work: pathlib.Path, out: pathlib.Path) -> Iterator[None]:
    """Makes the folder in which a preparation works, and locks it."""
    message = f"another process is preparing {out}, in {work}: wait for it to end"
    while True:
        with contextlib.ExitStack() as stack:
            with writing(work):
                work.mkdir(parents=True, exist_ok=True)
                try:
                    here = stack.enter_context(exclusive_lock(work / LOCK, message))
                except FileNotFoundError:  # the other process has just renamed the folder
                    continue
            if here:
                yield
                return


def _write_shards(
    work: pathlib.Path,
    plan: Plan,
    producer: Producer,
    writer: ShardWriter,
    say: Callable[[str], None] | None,
) -> None:
    progress = _Progress(plan, writer, say)
    for index in range(writer.next_unit, len(plan.units)):
        while not producer.poll(work, index):
            time.sleep(0.02)
            progress.report(index)
        path = unit_path(work, index)
        unit = load_unit(path)
        if unit is None:
            path.unlink()
            raise InputError(
                f"{path} was damaged, and is deleted: give the same command again, which makes it "
                "anew"
            )
        writer.add(index, unit)
        progress.report(index + 1)
    writer.finish()


def _prepared(out: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest and manifest.get("settings") == settings:
        with writing(out):
            (out / LOCK).unlink(missing_ok=True)  # of a process that was killed at its very end
    if manifest is None or manifest.get("settings") != settings:
        raise InputError(
            f"{out} exists, but was not prepared with these settings: give another --out, or move "
            "it away"
        )
    return manifest


def _kept_plan(work: pathlib.Path, settings: Mapping[str, Any]) -> Plan | None:
    """The plan of an interrupted preparation, if it is bound to a commit on the hub.

    By now the data set may have another commit.
    """
    if not all((work / name).exists() for name in (SETTINGS, PLAN)):
        return None
    if read_settings(work) != settings:
        return None
    plan = read_plan(work)
    return plan if plan.revision else None


def _start(
    work: pathlib.Path,
    settings: Mapping[str, Any],
    plan: Plan,
    tokenizer: Tokenizer,
    say: Callable[[str], None] | None,
) -> None:
    """Writes what workers need to tokenize units; checks it, if an interrupted preparation did."""
    if (work / SETTINGS).exists():
        previous = read_settings(work)
        changed = [
            f"{key} was {previous.get(key)!r}, now {settings.get(key)!r}"
            for key in dict.fromkeys([*settings, *previous])
            if previous.get(key) != settings.get(key)
        ]
        if changed:
            raise InputError(
                f"{work} holds an interrupted preparation with other settings "
                f"({'; '.join(changed)}): delete it first"
            )
        kept = read_plan(work)
        if dataclasses.replace(kept, folder=shown(kept.folder)) != dataclasses.replace(
            plan, folder=shown(plan.folder)
        ):
            raise InputError(
                f"the files of {settings['source']!r} changed since {work} was begun: "
                f"{start_again(work)}"
            )
        if say:
            revision = f" with revision {plan.revision}" if plan.revision else ""
            say(f"continuing in {work}{revision}")
        if kept != plan:  # another password or token
            _write_plan(work, plan)
        return
    (work / TOKENIZED).mkdir(exist_ok=True)
    tokenizer.save(work)
    _write_plan(work, plan)
    write_sealed(work / SETTINGS, settings)  # last: if it exists, the others do


def _write_plan(work: pathlib.Path, plan: Plan) -> None:
    write_sealed(work / PLAN, plan.to_dict())
    if shown(plan.folder) != plan.folder:  # for the workers, and none but them
        (work / PLAN).chmod(0o600)


def _write_manifest(
    work: pathlib.Path,
    settings: Mapping[str, Any],
    revision: str,
    tokenizer: Tokenizer,
    writer: ShardWriter,
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
        **writer.splits,
    }
    write_sealed(work / MANIFEST, manifest)


class _Progress:
    """Prints a line of progress every ten seconds."""

    def __init__(self, plan: Plan, writer: ShardWriter, say: Callable[[str], None] | None):
        self._plan, self._writer, self._say = plan, writer, say
        self._start = self._last = time.monotonic()
        self._start_unit, self._start_tokens = writer.next_unit, writer.tokens

    def report(self, units: int) -> None:
        now, at_end = time.monotonic(), units == len(self._plan.units)
        if not self._say or (now - self._last < 10 and not at_end):
            return
        self._last = now
        sizes = [unit.size for unit in self._plan.units]
        done, total, before = sum(sizes[:units]), sum(sizes), sum(sizes[: self._start_unit])
        seconds = now - self._start
        rate = (self._writer.tokens - self._start_tokens) / seconds
        left = "..."
        if done > before:
            left = f"{seconds * (total - done) / (done - before) / 60:,.1f} minutes left"
        tokens = f"{self._writer.tokens / 1e6:,.1f} M tokens  {rate / 1e6:.2f} M tokens/s"
        self._say(f"{tokens}  {done / total:.1%} of the text  {left}")


def main(arguments: list[str]) -> None:
    parser = Parser("t6jax.data.prepare", __doc__)
    add = parser.add_argument
    add(
        "--source",
        required=True,
        help='a file or folder of .parquet, .jsonl or text, "python", a URL, or a data set of the '
        "Hugging Face hub",
    )
    add(
        "--subset",
        default="",
        help="a configuration of a data set on the hub, such as sample-100BT, or a folder in the "
        "source",
    )
    add(
        "--text_key",
        default=TEXT_KEY,
        help="the key of .jsonl, or the column of .parquet, with the text",
    )
    add("--out", required=True, type=path_argument, help="the folder to make")
    add(
        "--tokenizer",
        default="gpt2",
        help="gpt2, bytes, or the path of a .tiktoken file or a tokenizer.json",
    )
    add(
        "--validation_fraction",
        type=float,
        default=0.01,
        help="of the bytes of text files, or of a source that fits in one shard",
    )
    add("--shard_tokens", type=int, default=SHARD_TOKENS, help="tokens in a shard")
    add(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes, or Slurm or Ray tasks at a time",
    )
    add("--executor", choices=EXECUTORS, default="local", help="where datatrove runs the work")
    add("--slurm_partition", help="with --executor=slurm, which requires it")
    add("--slurm_time", default="20:00:00", help="with --executor=slurm: the limit of a job")
    add(
        "--unit_bytes",
        type=int,
        default=UNIT_BYTES,
        help=f"bytes of text that a worker tokenizes at once, {REMOTE_UNITS} times as many over a "
        "network",
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
            f"{len(held['shards'])} shards"
        )
    print(f"prepared {out}")


if __name__ == "__main__":
    run(main)

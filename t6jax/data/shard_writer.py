"""Tokenized units, in the order of the plan, to shards."""

import collections
import pathlib
from typing import Any, NamedTuple

import numpy as np

from t6jax.data.manifest import file_crc32
from t6jax.data.shards import write_shard
from t6jax.data.tokenized import TokenizedUnit, unit_path
from t6jax.errors import InputError
from t6jax.files import writing
from t6jax.sealed_json import read_sealed, write_sealed

STATE = "state.json"
SPLITS = ("val", "train")


class _Span(NamedTuple):
    """Tokens start to stop of the index-th unit."""

    index: int
    unit: TokenizedUnit
    start: int
    stop: int


class ShardWriter:
    """Cuts the tokens of all units, one after another, into shards of shard_tokens.

    After an interruption, a new writer on the same folder continues: state.json is written after
    each shard and says how far the shards reach. The tokens of a unit are deleted when the shards
    hold all of them.

    Attributes:
        next_unit: the index of the unit to add next.
        splits: {"val" and "train": {documents, bytes, tokens, shards}}, as in the manifest.
    """

    def __init__(
        self,
        work: pathlib.Path,
        validation_units: int,
        validation_fraction: float,
        version: int,
        shard_tokens: int,
    ):
        """
        Args:
            work: the folder of the preparation.
            validation_units: how many units, from the first, are the validation text; 0: the first
                shard is.
            validation_fraction: share of the text for validation, if all of it fits in one shard.
            version: of the shards' format.
            shard_tokens: tokens in a shard.
        """
        self._work, self._version, self._shard_tokens = work, version, shard_tokens
        self._validation_units, self._validation_fraction = validation_units, validation_fraction
        path = work / STATE
        state = read_sealed(path, f"delete {work} to start again") if path.exists() else {}
        self.next_unit: int = state.get("unit", 0)
        self._offset: int = state.get("offset", 0)
        self.splits: dict[str, dict[str, Any]] = state.get("splits") or {
            split: _empty_split() for split in SPLITS
        }
        self._pending: collections.deque[_Span] = collections.deque()

    @property
    def tokens(self) -> int:
        """All tokens so far, including those that are in no shard yet."""
        return sum(split["tokens"] for split in self.splits.values()) + self._pending_tokens

    def add(self, index: int, unit: TokenizedUnit) -> None:
        """Adds the next unit, and writes the shards that it completes."""
        if index == self._validation_units and self._validation_units and self._pending_tokens:
            self._write("val", self._pending_tokens)
        start = self._offset if index == self.next_unit else 0
        if start > len(unit.tokens):
            raise InputError(
                f"{unit_path(self._work, index)} has fewer tokens than before: delete {self._work} "
                "to start again"
            )
        self._pending.append(_Span(index, unit, start, len(unit.tokens)))
        while self._pending_tokens >= self._shard_tokens:
            self._write(self._split(index), self._shard_tokens)

    def finish(self) -> None:
        """Writes the rest.

        If all text fits in one shard, its first documents are the validation text.
        """
        if self._pending_tokens and not self._validation_units and not self.splits["val"]["shards"]:
            self._write("val", self._validation_tokens())
        if self._pending_tokens:
            self._write("train", self._pending_tokens)

    @property
    def _pending_tokens(self) -> int:
        return sum(span.stop - span.start for span in self._pending)

    def _split(self, index: int) -> str:
        if self._validation_units:
            return "val" if index < self._validation_units else "train"
        return "train" if self.splits["val"]["shards"] else "val"

    def _validation_tokens(self) -> int:
        """How many of the pending tokens are for validation: whole documents, at least one."""
        ends = np.cumsum(np.concatenate([span.unit.document_tokens for span in self._pending]))
        return int(ends[np.abs(ends - self._validation_fraction * ends[-1]).argmin()])

    def _write(self, split: str, count: int) -> None:
        totals, pieces = self.splits[split], []
        reached = (self.next_unit, self._offset)
        left = count
        while left:
            span = self._pending.popleft()
            stop = min(span.stop, span.start + left)
            pieces.append(span.unit.tokens[span.start : stop])
            left -= stop - span.start
            documents, size = _count(span.unit, span.start, stop)
            totals["documents"] += documents
            totals["bytes"] += size
            whole = stop == len(span.unit.tokens)
            reached = (span.index + 1, 0) if whole else (span.index, stop)
            if stop < span.stop:
                self._pending.appendleft(span._replace(start=stop))
        number = sum(len(split["shards"]) for split in self.splits.values())
        path = self._work / f"{split}_{number:06d}.bin"
        checksum = write_shard(path, np.concatenate(pieces), self._version)
        totals["tokens"] += count
        crc32 = file_crc32(path.with_suffix(".crc32").read_bytes())
        totals["shards"].append(
            {"file": path.name, "tokens": count, "sha256": checksum, "crc32": crc32}
        )
        unit, offset = reached
        state = {"unit": unit, "offset": offset, "splits": self.splits}
        write_sealed(self._work / STATE, state)
        for used in range(self.next_unit, unit):
            with writing(unit_path(self._work, used)):
                unit_path(self._work, used).unlink(missing_ok=True)
        self.next_unit, self._offset = reached


def _empty_split() -> dict[str, Any]:
    return {"documents": 0, "bytes": 0, "tokens": 0, "shards": []}


def _count(unit: TokenizedUnit, start: int, stop: int) -> tuple[int, int]:
    """(documents that begin, bytes of text) of a unit's tokens start to stop.

    The bytes of a document that is cut in two are divided in proportion to its tokens.
    """
    token_ends = np.concatenate([[0], np.cumsum(unit.document_tokens)])
    byte_ends = np.concatenate([[0], np.cumsum(unit.document_bytes)])
    documents = np.searchsorted(token_ends[:-1], [start, stop])
    size = np.interp([start, stop], token_ends, byte_ends).astype(np.int64)
    return int(documents[1] - documents[0]), int(size[1] - size[0])

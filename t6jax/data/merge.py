"""Parts in, in the order of their units; shards out."""

import collections
import json
import pathlib
from typing import NamedTuple

import numpy as np

from t6jax.data.parts import Part, part_path
from t6jax.data.shards import write_shard
from t6jax.files import write_atomically

STATE = "state.json"
SPLITS = ("val", "train")


class _Stretch(NamedTuple):
    """Tokens start to stop of a unit's part, and the running totals of the part's documents."""

    unit: int
    part: Part
    start: int
    stop: int


class Merger:
    """Cuts the tokens of all parts, one after another, into shards of shard_tokens.

    first_unit: the part that is wanted next. splits: {"val" and "train": {documents, bytes, tokens,
        shards}}.

    Whatever interrupts it, a new one on the same folder goes on: after each shard state.json says
    how far the shards reach, and a part is deleted only when it lies in whole before that.
    """

    def __init__(
        self,
        work: pathlib.Path,
        validation_units: int,
        validation_fraction: float,
        version: int,
        shard_tokens: int,
    ):
        self._work, self._version, self._shard_tokens = work, version, shard_tokens
        self._validation_units, self._validation_fraction = validation_units, validation_fraction
        path = work / STATE
        state = json.loads(path.read_text()) if path.exists() else {"unit": 0, "taken": 0}
        self.first_unit, self._taken = state["unit"], state["taken"]
        empty = lambda: {"documents": 0, "bytes": 0, "tokens": 0, "shards": []}
        self.splits = state.get("splits") or {split: empty() for split in SPLITS}
        self._pending: collections.deque[_Stretch] = collections.deque()

    @property
    def tokens(self) -> int:
        """All tokens so far, those in no shard yet included."""
        return sum(split["tokens"] for split in self.splits.values()) + self._pending_tokens

    def add(self, unit: int, part: Part) -> None:
        """Takes the next part in, and writes the shards that it completes."""
        if unit == self._validation_units and self._validation_units and self._pending_tokens:
            self._write("val", self._pending_tokens)
        start = self._taken if unit == self.first_unit else 0
        self._pending.append(_Stretch(unit, part, start, len(part.tokens)))
        while self._pending_tokens >= self._shard_tokens:
            self._write(self._split(unit), self._shard_tokens)

    def finish(self) -> None:
        """Writes what is left. Where all fits in one shard, its first documents are the validation
        text.
        """
        if self._pending_tokens and not self._validation_units and not self.splits["val"]["shards"]:
            self._write("val", self._cut())
        if self._pending_tokens:
            self._write("train", self._pending_tokens)

    @property
    def _pending_tokens(self) -> int:
        return sum(s.stop - s.start for s in self._pending)

    def _split(self, unit: int) -> str:
        if self._validation_units:
            return "val" if unit < self._validation_units else "train"
        return "train" if self.splits["val"]["shards"] else "val"

    def _cut(self) -> int:
        """Tokens to the start of the document nearest to the fraction of the pending tokens, at
        least one document.
        """
        ends = np.cumsum(np.concatenate([s.part.document_tokens for s in self._pending]))
        return int(ends[np.abs(ends - self._validation_fraction * ends[-1]).argmin()])

    def _write(self, split: str, count: int) -> None:
        taken, pieces = self.splits[split], []
        left = count
        while left:
            s = self._pending.popleft()
            stop = min(s.stop, s.start + left)
            pieces.append(s.part.tokens[s.start : stop])
            left -= stop - s.start
            documents, size = _count(s.part, s.start, stop)
            taken["documents"] += documents
            taken["bytes"] += size
            at = (s.unit, stop) if stop < len(s.part.tokens) else (s.unit + 1, 0)
            if stop < s.stop:
                self._pending.appendleft(s._replace(start=stop))
        number = sum(len(split["shards"]) for split in self.splits.values())
        path = self._work / f"{split}_{number:06d}.bin"
        checksum = write_shard(path, np.concatenate(pieces), self._version)
        taken["tokens"] += count
        taken["shards"].append({"file": path.name, "tokens": count, "sha256": checksum})
        unit, start = at
        write_atomically(
            self._work / STATE,
            json.dumps({"unit": unit, "taken": start, "splits": self.splits}),
        )
        for used in range(self.first_unit, unit):
            part_path(self._work, used).unlink(missing_ok=True)
        self.first_unit, self._taken = unit, start


def _count(part: Part, start: int, stop: int) -> tuple[int, int]:
    """(documents that begin, bytes) of a part's tokens start to stop; of a document cut in two,
    bytes by its share of tokens.
    """
    token_ends = np.concatenate([[0], np.cumsum(part.document_tokens)])
    byte_ends = np.concatenate([[0], np.cumsum(part.document_bytes)])
    documents = np.searchsorted(token_ends[:-1], [start, stop])
    size = np.interp([start, stop], token_ends, byte_ends).astype(np.int64)
    return int(documents[1] - documents[0]), int(size[1] - size[0])

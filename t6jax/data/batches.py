"""Batches of token windows by Grain."""

import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from t6jax.data.shards import Windows, find_shards
from t6jax.errors import InputError

# folders of shards, each with its weight in the mixture
Sources = Sequence[tuple[pathlib.Path, float]]


def training_batches(
    sources: pathlib.Path | Sources,
    *,
    batch_size: int,
    context_length: int,
    vocab_size: int,
    seed: int,
    with_replacement: bool = False,
    num_workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> "Batches":
    """Endless batches int32 [B / processes, T + 1] of the training shards, in an order fixed by the
    seed.

    Each epoch over a source visits every window once, in a new order. Of several sources each gives
    its weight's share of every stretch of the order.

    with_replacement: windows start anywhere and are drawn independently, as in the published code:
        there are no epochs.
    num_workers: processes that read ahead; 0 reads ahead in threads.
    process_index, process_count: default JAX's. Process p holds rows p, p + P, ... of the global
        batch.
    """
    index = jax.process_index() if process_index is None else process_index
    processes = jax.process_count() if process_count is None else process_count
    if batch_size % processes:
        raise InputError(f"batch_size={batch_size} must be a multiple of the {processes} processes")

    def order(number: int, windows: Windows) -> grain.MapDataset:
        own_seed = seed + 2**16 * number  # an epoch adds 1 to the seed
        if with_replacement:
            draws = grain.MapDataset.range(len(windows)).repeat()
            return draws.random_map(functools.partial(_draw, windows), seed=own_seed % 2**32)
        return grain.MapDataset.source(windows).shuffle(seed=own_seed % 2**32).repeat()

    dataset = _mixture(sources, "train", context_length, vocab_size, order)
    return Batches(dataset[index::processes].batch(batch_size // processes), num_workers)


def validation_batches(
    sources: pathlib.Path | Sources,
    *,
    batch_size: int,
    context_length: int,
    vocab_size: int,
    max_batches: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(windows int32 [B, T + 1], mask float32 [B]) over the validation shards, always the same ones
    in the same order.

    Of several sources each gives its weight's share, until one is used up.
    max_batches: how many to take of all, drawn evenly over the shards; the last batch is filled up
        with masked rows.
    """
    order = lambda number, windows: grain.MapDataset.source(windows).shuffle(seed=0)
    dataset = _mixture(sources, "val", context_length, vocab_size, order).batch(
        batch_size, drop_remainder=False
    )

    def padded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        short = batch_size - len(rows)
        return np.pad(rows, ((0, short), (0, 0))), np.pad(
            np.ones(len(rows), np.float32), (0, short)
        )

    return (
        padded(dataset[i])
        for i in range(len(dataset) if max_batches is None else min(max_batches, len(dataset)))
    )


class Batches:
    """An iterator over the batches of a dataset, with a state: {"batches": how many were taken}.

    Grain's own states are of one number of processes and of workers; this one is the same for any.
    (A global batch has the same windows whatever the number of processes.)
    """

    def __init__(self, dataset: grain.MapDataset, num_workers: int):
        self._dataset, self._num_workers = dataset, num_workers
        self._taken = 0
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> np.ndarray:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._taken += 1
        return batch

    def start_prefetch(self) -> None:
        """Begins to read ahead, as the first batch that is asked for does otherwise."""
        if self._iterator is None:
            self._iterator = self._start()
            self._iterator.start_prefetch()

    def get_state(self) -> dict[str, int]:
        return {"batches": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._taken = state["batches"]

    def close(self) -> None:
        """Stops reading ahead."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        rest = self._dataset[self._taken :].to_iter_dataset(
            grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
        )
        if self._num_workers:
            _parse_absl_flags()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
        return iter(rest)


def _mixture(
    sources: pathlib.Path | Sources, split: str, context_length: int, vocab_size: int, order: Any
) -> grain.MapDataset:
    sources = [(sources, 1.0)] if isinstance(sources, pathlib.Path) else sources
    windows = [
        Windows(find_shards(folder, split), context_length, vocab_size) for folder, _ in sources
    ]
    datasets = [order(number, w) for number, w in enumerate(windows)]
    return (
        datasets[0]
        if len(datasets) == 1
        else grain.MapDataset.mix(datasets, [weight for _, weight in sources])
    )


def _draw(windows: Windows, _: int, rng: np.random.Generator) -> np.ndarray:
    return windows.starting_at(int(rng.integers(windows.num_starts)))


def _parse_absl_flags() -> None:
    """Grain starts its workers by absl, which wants its flags parsed: a program without any has not
    done it.
    """
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])

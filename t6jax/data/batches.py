"""Batches of token windows, read by Grain."""

import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t6jax.arguments import integer, number
from t6jax.data.shards import OPEN_SHARDS, Windows, find_shards
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.fields import Range

with needs("data"):
    import grain

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
    """Endless batches of the training shards, in an order that the seed fixes.

    Each epoch over a source visits every window once, in a new order. Several sources are
    interleaved evenly in proportion to their weights.

    Args:
        sources: a folder of shards, or several with their weights.
        batch_size: B, of all processes together.
        context_length: T.
        vocab_size: tokens must be below it.
        seed: of the order.
        with_replacement: draw windows independently, starting at any token, as the published code
            does. There are no epochs then.
        num_workers: processes that prefetch; 0 prefetches in threads.
        process_index, process_count: default to JAX's. Process p of P reads rows p, p + P, ... of
            the global batch.

    Returns:
        An iterator over int32 [B / P, T + 1].

    Raises:
        InputError: if B is no multiple of P, or the shards are missing, damaged or too short.
    """
    index = jax.process_index() if process_index is None else process_index
    processes = jax.process_count() if process_count is None else process_count
    _check_counts(batch_size, context_length, vocab_size)
    integer("num_workers", num_workers, Range(low=0))
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
) -> "ValidationBatches":
    """Batches of the validation shards, the same windows in the same order each time.

    Several sources are interleaved in proportion to their weights until one of them ends.

    Args:
        sources: a folder of shards, or several with their weights.
        batch_size: B.
        context_length: T.
        vocab_size: tokens must be below it.
        max_batches: how many batches, drawn evenly from the shards; None: all.

    Yields:
        windows int32 [B, T + 1] and their mask float32 [B], which is 0 for the rows that fill up
        the last batch.
    """

    _check_counts(batch_size, context_length, vocab_size)
    if max_batches is not None:
        integer("max_batches", max_batches, Range(low=1))

    def order(_: int, windows: Windows) -> grain.MapDataset:
        return grain.MapDataset.source(windows).shuffle(seed=0)

    dataset = _mixture(sources, "val", context_length, vocab_size, order)
    dataset = dataset.batch(batch_size, drop_remainder=False)
    count = len(dataset) if max_batches is None else min(max_batches, len(dataset))
    filled = (_fill_up(np.asarray(dataset[i]), batch_size) for i in range(count))
    return ValidationBatches(filled, count)


class ValidationBatches(Iterator[tuple[np.ndarray, np.ndarray]]):
    """An iterator over validation batches; its length is that of all of them."""

    def __init__(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], count: int):
        self._batches, self._count = batches, count

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        return next(self._batches)

    def __len__(self) -> int:
        return self._count


def _fill_up(rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    missing = batch_size - len(rows)
    mask = np.pad(np.ones(len(rows), np.float32), (0, missing))
    return np.pad(rows, ((0, missing), (0, 0))), mask


class Batches:
    """An iterator over the batches of a dataset, whose state is the number of batches taken.

    Grain's own states hold for one number of processes and workers. This one holds for any, since a
    global batch has the same windows whatever the number of processes.
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
        """Starts prefetching; otherwise the first batch does."""
        if self._iterator is None:
            self._iterator = self._start()
            self._iterator.start_prefetch()

    def get_state(self) -> dict[str, int]:
        return {"batches": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._taken = state["batches"]

    def close(self) -> None:
        """Stops prefetching."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        rest = self._dataset[self._taken :].to_iter_dataset(
            grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
        )
        if self._num_workers:
            _parse_absl_flags()
            rest = rest.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._num_workers),
                worker_init_fn=_end_with_parent,
            )
        return iter(rest)


def _check_counts(batch_size: int, context_length: int, vocab_size: int) -> None:
    integer("batch_size", batch_size, Range(low=1))
    integer("context_length", context_length, Range(low=1))
    integer("vocab_size", vocab_size, Range(low=1))


def _mixture(
    sources: pathlib.Path | Sources, split: str, context_length: int, vocab_size: int, order: Any
) -> grain.MapDataset:
    sources = [(sources, 1.0)] if isinstance(sources, pathlib.Path) else sources
    for folder, weight in sources:
        number(f"the weight of {folder}", weight, Range(above=0))
    if not sources:
        raise InputError("sources is empty: give a folder of shards, or several with weights")
    open_shards = max(1, OPEN_SHARDS // len(sources))
    windows = [
        Windows(find_shards(folder, split), context_length, vocab_size, open_shards)
        for folder, _ in sources
    ]
    datasets = [order(number, w) for number, w in enumerate(windows)]
    if len(datasets) == 1:
        return datasets[0]
    return grain.MapDataset.mix(datasets, [weight for _, weight in sources])


def _draw(windows: Windows, _: int, rng: np.random.Generator) -> np.ndarray:
    return windows.starting_at(int(rng.integers(windows.num_starts)))


def _end_with_parent(index: int, count: int) -> None:
    """Ends this worker process when its parent has ended, however that happens: Grain's own workers
    stay when it is killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parse_absl_flags() -> None:
    """Parses no flags, for programs without absl: Grain's workers require that it was done."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])

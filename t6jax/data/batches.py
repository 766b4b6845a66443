"""Batches of token windows by Grain."""

import pathlib
from collections.abc import Iterator

import grain
import jax
import numpy as np

from t6jax.data.shards import Windows, find_shards
from t6jax.errors import InputError


def training_batches(
    folder: pathlib.Path, *, batch_size: int, context_length: int, vocab_size: int, seed: int, num_workers: int = 0
) -> grain.DatasetIterator:
    """Endless batches int32 [B / processes, T + 1] of the training shards, in an order fixed by the seed.

    Each epoch visits every window once, in a new order. The iterator's state is the number of batches taken, whatever
    the number of processes: process p holds rows p, p + P, ... of the global batch.
    num_workers: processes that read ahead; 0 reads ahead in threads.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise InputError(f"batch_size={batch_size} must be a multiple of the {processes} processes")
    windows = Windows(find_shards(folder, "train"), context_length, vocab_size)
    dataset = grain.MapDataset.source(windows).shuffle(seed=seed).repeat()
    dataset = dataset[jax.process_index() :: processes].batch(batch_size // processes)
    read = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
    if num_workers:
        return iter(dataset.to_iter_dataset(read).mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers)))
    return iter(dataset.to_iter_dataset(read))


def validation_batches(
    folder: pathlib.Path, *, batch_size: int, context_length: int, vocab_size: int, max_batches: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(windows int32 [B, T + 1], mask float32 [B]) over the validation shards, always the same ones in the same order.

    max_batches: how many to take of all, drawn evenly over the shards; the last batch is filled up with masked rows.
    """
    windows = Windows(find_shards(folder, "val"), context_length, vocab_size)
    dataset = grain.MapDataset.source(windows).shuffle(seed=0).batch(batch_size, drop_remainder=False)

    def filled(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        short = batch_size - len(rows)
        return np.pad(rows, ((0, short), (0, 0))), np.pad(np.ones(len(rows), np.float32), (0, short))

    return (filled(dataset[i]) for i in range(len(dataset) if max_batches is None else min(max_batches, len(dataset))))

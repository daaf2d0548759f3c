"""Which examples make up which batch: a pure function of seed, epoch and sizes."""

from collections.abc import Sequence

import numpy as np


def training_order(seed: int, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """The batches of an epoch: a permutation that depends on seed and epoch alone.

    A resumed run sees what an uninterrupted one would have seen. The examples left over after the
    last full batch are left out; which ones changes from epoch to epoch.

    Args:
        seed: of the run.
        epoch: counted from 1.
        examples: size of the training split.
        batch_size: at most `examples`.

    Returns:
        Indices, int32, (examples // batch_size, batch_size).

    Example:
        >>> training_order(0, 1, examples=7, batch_size=3).shape
        (2, 3)
    """
    steps = examples // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def evaluation_order(examples: int, batch_size: int) -> np.ndarray:
    """Batches that hold every example once; -1 fills up the last.

    Returns:
        Indices, int32, (number of batches, batch_size).

    Example:
        >>> evaluation_order(5, 3)
        array([[ 0,  1,  2],
               [ 3,  4, -1]], dtype=int32)
    """
    batches = -(-examples // batch_size)
    order = np.full(batches * batch_size, -1, np.int32)
    order[:examples] = np.arange(examples, dtype=np.int32)
    return order.reshape(batches, batch_size)


def few_lengths(lengths: np.ndarray) -> tuple[int, ...]:
    """A handful of lengths that sequences can be padded to with little waste.

    Args:
        lengths: of the sequences, at least one.

    Returns:
        Increasing; the last is the longest of all.

    Example:
        >>> few_lengths(np.arange(1, 101))
        (50, 90, 98, 100)
    """
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.98, 1.0], method="inverted_cdf")
    return tuple(sorted(set(map(int, quantiles))))


def training_order_by_length(
    seed: int,
    epoch: int,
    sizes: np.ndarray,
    batch_size: int,
    lengths: Sequence[int],
    pool: int = 32,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """`training_order` with sequences of like length together.

    Every `pool` batches that follow each other are sorted by length and cut anew; then all batches
    are shuffled.

    Args:
        seed: of the run.
        epoch: counted from 1.
        sizes: the sequences' lengths (N,).
        batch_size: at most N.
        lengths: what they may be padded to, increasing.
        pool: batches to sort together.

    Returns:
        Indices as of `training_order`, and for each batch the least of `lengths` that holds it.

    Example:
        >>> rows, lengths = training_order_by_length(
        ...     0, 1, np.array([3, 9, 2, 9, 1, 8]), batch_size=2, lengths=(4, 9)
        ... )
        >>> sorted(lengths)
        [4, 9, 9]
    """
    rows = training_order(seed, epoch, len(sizes), batch_size)
    rng = np.random.default_rng([seed, epoch, 1])
    pools = [rows[i : i + pool].reshape(-1) for i in range(0, len(rows), pool)]
    # A stable sort: of equal lengths, the permutation says which come first.
    rows = np.concatenate([p[np.argsort(sizes[p], kind="stable")] for p in pools])
    rows = rng.permutation(rows.reshape(-1, batch_size))
    return rows, padded_lengths(sizes[rows].max(1), lengths)


def padded_lengths(sizes: np.ndarray, lengths: Sequence[int]) -> tuple[int, ...]:
    """For each size the least of `lengths` that is not below it.

    Example:
        >>> padded_lengths(np.array([1, 5, 4]), (4, 9))
        (4, 9, 4)
    """
    return tuple(int(lengths[i]) for i in np.searchsorted(lengths, sizes))

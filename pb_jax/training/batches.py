"""Which examples make up which batch: a pure function of seed, epoch and sizes."""

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

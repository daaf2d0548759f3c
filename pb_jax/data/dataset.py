"""What the rest of the project sees of a dataset: arrays, class names, two constants."""

import hashlib
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """The examples of one split, in their fixed order.

    Attributes:
        images: uint8 (N, H, W, C); possibly a read-only memory map.
        labels: int32 (N,).
    """

    images: np.ndarray
    labels: np.ndarray

    def first(self, limit: int | None) -> "Split":
        """The first `limit` examples (None: all), without copying."""
        return Split(self.images[:limit], self.labels[:limit])


class Dataset(NamedTuple):
    """A dataset in memory.

    Attributes:
        name: its name in `pb_jax.data.DATASETS`.
        train: the training split.
        test: the evaluation split.
        num_classes: number of classes.
        class_names: their names, in the order of the labels.
        mean: per channel, of pixels divided by 255; what `normalize` takes.
        std: the same for the standard deviation.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Geometry(NamedTuple):
    """What the files of a dataset must hold.

    Attributes:
        shape: (H, W, C) of an image.
        num_classes: labels lie in [0, num_classes).
        train_size: number of training examples.
        test_size: number of test examples.
    """

    shape: tuple[int, int, int]
    num_classes: int
    train_size: int
    test_size: int

    def size(self, split: str) -> int:
        """Number of examples of `split`: "train" or "test"."""
        return {"train": self.train_size, "test": self.test_size}[split]


def content_digest(split: Split) -> str:
    """SHA-256 of a split's pixels and labels, whatever files they came from.

    Example:
        >>> split = Split(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32))
        >>> content_digest(split)[:8]
        '4dc7c79c'
    """
    digest = hashlib.sha256(repr(split.images.shape).encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i4").data)
    return digest.hexdigest()

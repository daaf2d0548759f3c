"""The four gzipped IDX files in which MNIST and Fashion-MNIST are published.

Format: big-endian int32 magic number (2051 images, 2049 labels), the sizes of all dimensions,
the bytes.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from pb_jax.data.dataset import Geometry, Split
from pb_jax.data.errors import DataError

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_PREFIX = {"train": "train", "test": "t10k"}
_MAGIC = {"images": 2051, "labels": 2049}


def read(folder: Path, geometry: Geometry) -> dict[str, Split]:
    """Read both splits from the four files in `folder`.

    Args:
        folder: holds all of `FILES`.
        geometry: what they must contain; C is 1.

    Returns:
        {"train": Split, "test": Split} in the order of the files.

    Raises:
        DataError: a file is damaged, cut short or of another shape; the message names it.
    """
    height, width, _ = geometry.shape
    splits = {}
    for split, prefix in _PREFIX.items():
        size = geometry.size(split)
        images = _read(folder / f"{prefix}-images-idx3-ubyte.gz", "images", (size, height, width))
        path = folder / f"{prefix}-labels-idx1-ubyte.gz"
        labels = _read(path, "labels", (size,))
        if labels.max() >= geometry.num_classes:
            raise DataError(
                f"{path}: found label {labels.max()}, expected 0 to {geometry.num_classes - 1}"
            )
        splits[split] = Split(images[..., np.newaxis], labels.astype(np.int32))
    return splits


def _read(path: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    header_size = 4 * (1 + len(shape))
    expected_size = header_size + int(np.prod(shape))
    data = _unzip(path, expected_size + 1)  # one byte more shows what is too long
    if len(data) < header_size:
        raise DataError(f"{path}: found {len(data)} bytes, expected a header of {header_size}")
    magic, *found = struct.unpack(f">{1 + len(shape)}i", data[:header_size])
    if magic != _MAGIC[kind]:
        raise DataError(
            f"{path}: magic number is {magic}, expected {_MAGIC[kind]} (an IDX file of {kind})"
        )
    if tuple(found) != shape:
        raise DataError(f"{path}: its header gives the shape {tuple(found)}, expected {shape}")
    if len(data) != expected_size:
        length = f"{len(data)}" if len(data) < expected_size else "more"
        raise DataError(f"{path}: unpacks to {length} bytes, expected {expected_size}")
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def _unzip(path: Path, limit: int) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(limit)
    except EOFError as error:
        raise DataError(
            f"{path}: is cut short (its compressed data ends early); fetch it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is no intact gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error

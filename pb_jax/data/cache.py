"""Decoded arrays beside the TFDS dataset, memory-mapped: a second start decodes nothing.

The folder holds one .npy file an array and, written last, an index: the format's version, the
digests of the content and the size of every file. An index that does not fit means no cache.
"""

import shutil
import tokenize
from pathlib import Path

import numpy as np

from pb_jax.data.dataset import Geometry, Split
from pb_jax.files import read_json, replacing, write_json

_FORMAT = 1
_INDEX = "index.json"


def read(folder: Path, digests: dict[str, str], geometry: Geometry) -> dict[str, Split] | None:
    """Map the arrays in `folder` into memory.

    Args:
        folder: where `write` put them.
        digests: `content_digest` of each split that is wanted.
        geometry: the shapes that are wanted.

    Returns:
        The splits, read-only; None if there is no cache, or one that is stale or damaged.
    """
    try:
        index = read_json(folder / _INDEX)
        if index != _index(folder, digests):
            return None
        splits = {
            split: Split(
                *(
                    np.load(_path(folder, split, part), mmap_mode="r", allow_pickle=False)
                    for part in Split._fields
                )
            )
            for split in digests
        }
    # What is missing, cut short, or neither JSON nor .npy, whose header NumPy reads as Python.
    except (OSError, ValueError, SyntaxError, tokenize.TokenError):
        return None
    for split, (images, labels) in splits.items():
        size = geometry.size(split)
        if images.shape != (size, *geometry.shape) or images.dtype != np.uint8:
            return None
        if labels.shape != (size,) or labels.dtype != np.int32:
            return None
    return splits


def write(folder: Path, splits: dict[str, Split], digests: dict[str, str]) -> None:
    """Replace whatever is in `folder` by `splits`.

    Args:
        folder: made where it is missing; nobody else may be writing it.
        splits: what to write.
        digests: `content_digest` of each split.

    Raises:
        OSError: the folder cannot be written; then it holds no index.
    """
    if folder.exists():
        (folder / _INDEX).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for split, arrays in splits.items():
        for part, array in arrays._asdict().items():
            with replacing(_path(folder, split, part)) as temporary, temporary.open("wb") as file:
                np.save(file, array)
    write_json(folder / _INDEX, _index(folder, digests))


def _path(folder: Path, split: str, part: str) -> Path:
    return folder / f"{split}_{part}.npy"


def _index(folder: Path, digests: dict[str, str]) -> dict:
    sizes = {
        path.name: path.stat().st_size
        for split in digests
        for path in (_path(folder, split, part) for part in Split._fields)
    }
    return {"format": _FORMAT, "sha256": digests, "bytes": sizes}

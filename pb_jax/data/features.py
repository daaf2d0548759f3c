"""Features of a frozen encoder: computed once, kept on disk, read back without computing.

Beside the .npy file lies, written last, an index: whose features these are, and the size and CRC-32
of the file. Both carry a name made of the digests of the pictures and of the encoder.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pb_jax.data.errors import DataError
from pb_jax.data.locking import locked
from pb_jax.data.pictures import ImageSource
from pb_jax.data.progress import Progress
from pb_jax.files import read_json, replacing, write_json

_FORMAT = 1
_PIECE = 1 << 24  # bytes that are read at a time


def compute_or_map(
    images: ImageSource,
    encode: Callable[[np.ndarray], Any],
    *,
    image_size: int,
    shape: tuple[int, int, int],
    fingerprint: str,
    folder: str | os.PathLike[str],
    batch: int = 8,
    progress: bool = True,
) -> np.memmap:
    """Features of all pictures, from disk where they are already there.

    A file that is damaged or cut short is noticed and computed again. An interruption leaves
    nothing. The next batch is decoded while one is being computed.

    Args:
        images: N pictures.
        encode: from uint8 (batch, image_size, image_size, 3) to floats (batch, *shape); always
            called with `batch` pictures, so that it is compiled once.
        image_size: height and width of the pictures for the encoder.
        shape: (h, w, C) of the features of one picture.
        fingerprint: stands for the encoder and its weights.
        folder: where the files lie; made where it is missing.
        batch: pictures at a time; on CPU small batches are the fastest, as they stay in cache.
        progress: say on standard error what takes time.

    Returns:
        float16 (N, h, w, C), read-only, in the order of the pictures.

    Raises:
        DataError: a picture cannot be read, features do not fit into float16, or the folder
            cannot be written.
        ValueError: there are no pictures, or the encoder's features are not of `shape`.

    Example:
        >>> import tempfile
        >>> from pb_jax.data.pictures import ArrayImages
        >>> images = ArrayImages(("a", "b"), np.full((2, 4, 4, 3), 7, np.uint8))
        >>> features = compute_or_map(
        ...     images, lambda x: x[:, :2, :2] / 2, image_size=4, shape=(2, 2, 3),
        ...     fingerprint="half", folder=tempfile.mkdtemp(), progress=False)
        >>> features.shape, features[1, 0, 0]
        ((2, 2, 2, 3), memmap([3.5, 3.5, 3.5], dtype=float16))
    """
    if not len(images):
        raise ValueError("images must be at least one, got none")
    about = {
        "format": _FORMAT,
        "images": images.digest,
        "image_size": image_size,
        "encoder": fingerprint,
        "shape": [len(images), *shape],
    }
    status = Progress(progress)
    store = _Store(Path(folder), about)
    if (found := store.read(status)) is not None:
        return found
    try:
        with locked(store.folder, status):
            if (found := store.read(Progress(False))) is not None:
                return found  # another process was quicker
            blocks = _blocks(images, encode, image_size, shape, batch)
            title = f"computing features of {len(images)} images"
            with status.bar(title, total=len(images), unit="images") as bar:
                store.write(blocks, bar)
        found = store.read(status)
    except OSError as error:
        raise DataError(
            f"{error.filename or store.array}: {error.strerror or error}; cannot keep "
            f"{store.size / 1e6:,.0f} MB of features. Make room or choose another folder"
        ) from error
    if found is None:
        raise DataError(f"{store.array}: changed while it was being read; try again")
    return found


@dataclasses.dataclass(frozen=True)
class _Store:
    """Features on disk, and what must be known of them."""

    folder: Path
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def array(self) -> Path:
        return self.folder / f"{self.name}.npy"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.about["shape"])

    @property
    def size(self) -> int:
        return 2 * int(np.prod(self.shape))

    def read(self, status: Progress) -> np.memmap | None:
        """Map the array; None where there is none, or, said aloud, a damaged one."""
        if not self.index.exists():
            return None
        try:
            index = read_json(self.index)
            if index["about"] != self.about:
                raise ValueError("the index belongs to something else")
            found = self.array.stat().st_size
            if found != index["bytes"]:
                raise ValueError(f"{found} bytes instead of {index['bytes']}")
            if _crc(self.array) != index["crc32"]:
                raise ValueError("the content has changed")
            features = np.load(self.array, mmap_mode="r", allow_pickle=False)
            if features.shape != self.shape or features.dtype != np.float16:
                raise ValueError(f"it holds {features.dtype} {features.shape}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            status.say(f"{self.array}: damaged ({error}); computing it again")
            return None
        return features

    def write(self, blocks: Iterator[np.ndarray], bar: Any) -> None:
        """Replace what is there by `blocks`, (n, h, w, C) each."""
        self.index.unlink(missing_ok=True)
        for rest in self.folder.glob(f".{self.array.name}.*"):  # of a run that was killed
            rest.unlink()
        free = shutil.disk_usage(self.folder).free
        if free < self.size:
            raise OSError(0, f"only {free / 1e6:,.0f} MB are free", str(self.folder))
        header = {"descr": "<f2", "fortran_order": False, "shape": self.shape}
        # Not as a memory map: where the disk is full, writing to one kills the process.
        with replacing(self.array) as temporary:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for block in blocks:
                    file.write(np.ascontiguousarray(block, "<f2").data)
                    bar.update(len(block))
            size, crc = temporary.stat().st_size, _crc(temporary)
        write_json(self.index, {"about": self.about, "bytes": size, "crc32": crc})


def _blocks(
    images: ImageSource,
    encode: Callable[[np.ndarray], Any],
    image_size: int,
    shape: tuple[int, int, int],
    batch: int,
) -> Iterator[np.ndarray]:
    starts = range(0, len(images), batch)

    def read(start: int) -> np.ndarray:
        return images.read(range(start, min(start + batch, len(images))), image_size)

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(read, 0)
        for start in starts:
            pixels = upcoming.result()
            if start != starts[-1]:
                upcoming = pool.submit(read, start + batch)
            count = len(pixels)
            if count < batch:
                pixels = np.pad(pixels, ((0, batch - count), (0, 0), (0, 0), (0, 0)))
            block = np.asarray(encode(pixels))[:count]
            if block.shape[1:] != tuple(shape):
                raise ValueError(
                    f"features of a picture must be {tuple(shape)}, got {block.shape[1:]}"
                )
            with np.errstate(over="ignore"):
                block = block.astype(np.float16)
            whole = np.isfinite(block).all((1, 2, 3))
            if not whole.all():
                name = images.names[start + int(np.argmin(whole))]
                raise DataError(
                    f"{name}: its features are not finite in float16; are the encoder's weights "
                    "those of this network?"
                )
            yield block


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc

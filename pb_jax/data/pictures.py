"""Pictures of any size as arrays of one size, decoded when they are asked for."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from pb_jax.data.errors import DataError

MOST_PIXELS = 50_000_000
"""A picture that claims more is refused unread: a few kilobytes can claim gigabytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Picture files that `decode` reads."""

T = TypeVar("T")
R = TypeVar("R")


class ImageSource(Protocol):
    """Pictures in a fixed order, of which any few can be read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of their content, in order, as hexadecimal digits."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray, size: int | None = None) -> np.ndarray:
        """Read pictures, squeezed to a square.

        Args:
            indices: which of them, each 0 to `len(self) - 1`, in any order.
            size: height and width of the result; None: as stored, which all must share.

        Returns:
            uint8 (len(indices), size, size, 3).

        Raises:
            IndexError: there is no such picture.
            ValueError: `size` is None and the pictures asked for differ in size.
            DataError: one of them cannot be read.
        """
        ...

    def first(self, limit: int | None) -> "ImageSource":
        """The first `limit` pictures (None: all)."""
        ...


class ArrayImages:
    """An `ImageSource` that holds its pictures in memory.

    Args:
        names: a name for every picture.
        pixels: uint8 (N, H, W, 3).

    Example:
        >>> images = ArrayImages(("a", "b"), np.zeros((2, 8, 8, 3), np.uint8))
        >>> len(images), images.read([1, 0, 1]).shape, images.read([0], size=5).shape
        (2, (3, 8, 8, 3), (1, 5, 5, 3))
    """

    def __init__(self, names: Sequence[str], pixels: np.ndarray):
        if pixels.dtype != np.uint8 or pixels.shape != (len(names), *pixels.shape[1:3], 3):
            raise ValueError(
                f"pixels must be uint8 ({len(names)}, H, W, 3), got {pixels.dtype} {pixels.shape}"
            )
        self.names = tuple(names)
        self._pixels = pixels
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).data)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | np.ndarray, size: int | None = None) -> np.ndarray:
        """See `ImageSource.read`."""
        chosen = self._pixels[check_indices(indices, len(self))]
        if size in (None, *({chosen.shape[1]} & {chosen.shape[2]})):
            return chosen
        return stack([resize(pixels, size) for pixels in chosen], size)

    def first(self, limit: int | None) -> "ArrayImages":
        """See `ImageSource.first`."""
        return ArrayImages(self.names[:limit], self._pixels[:limit])


def decode(
    content: bytes, size: int | None = None, *, formats: Sequence[str] = FORMATS
) -> np.ndarray:
    """Decode a picture file: upright, in RGB, transparent parts white.

    Args:
        content: of the file; of an animation the first frame is taken.
        size: height and width of the result, squeezed to a square; None: as stored.
        formats: those that are admitted.

    Returns:
        uint8 (size, size, 3).

    Raises:
        DataError: it is no such file, is damaged, or has more than `MOST_PIXELS` pixels. The
            message begins with a verb: put the file's name before it.

    Example:
        >>> decode(b"GIF89a...")
        Traceback (most recent call last):
        ...
        pb_jax.data.errors.DataError: is no picture, or is damaged (cannot identify image file)
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=tuple(formats)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"is a picture of {image.width} x {image.height} pixels, "
                    f"more than {MOST_PIXELS:,} in all"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip
                upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            rgb = upright.convert("RGB")
            return np.asarray(rgb if size is None else _squeeze(rgb, size))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        reason = str(error).partition(" <_io")[0] or type(error).__name__
        raise DataError(f"is no picture, or is damaged ({reason})") from error


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squeeze a picture to a square: bicubic, with antialiasing where it shrinks.

    Args:
        pixels: uint8 (H, W, 3).
        size: height and width of the result.

    Returns:
        uint8 (size, size, 3).
    """
    from PIL import Image

    return np.asarray(_squeeze(Image.fromarray(pixels), size))


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map`, with a thread for every core: Pillow decodes outside of Python's lock."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)  # at an interruption, nobody waits for the rest


def stack(pictures: Sequence[np.ndarray], size: int | None) -> np.ndarray:
    """Put pictures into one array.

    Raises:
        ValueError: they differ in size.
    """
    if not pictures:
        return np.zeros((0, size or 0, size or 0, 3), np.uint8)
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"size must be given: the pictures differ in size ({sorted(shapes)[:3]})")
    return np.stack(pictures)


def check_indices(indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """`indices` as an integer array.

    Raises:
        IndexError: one is not in 0 to `size - 1`.
    """
    checked = np.asarray(indices if len(indices) else np.zeros(0, np.intp))
    if checked.ndim != 1 or not np.issubdtype(checked.dtype, np.integer):
        raise IndexError(f"indices must be a list of whole numbers, got {indices!r}")
    if np.any((checked < 0) | (checked >= size)):
        raise IndexError(f"indices must be 0 to {size - 1}, got {indices!r}")
    return checked


def _squeeze(image: Any, size: int) -> Any:
    from PIL import Image

    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC)

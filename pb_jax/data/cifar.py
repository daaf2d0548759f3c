"""The published files of CIFAR-10: pickled or binary batches, unpacked or in their archives.

An image is 3072 bytes: 32 x 32 red, then green, then blue values. The binary batches put a label
byte before each; the pickled ones hold a dictionary with `data` (rows, 3072) and `labels`.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pb_jax.data import pickles
from pb_jax.data.dataset import Geometry, Split
from pb_jax.data.errors import DataError

TRAIN_BATCHES = tuple(f"data_batch_{index}" for index in range(1, 6))
TEST_BATCH = "test_batch"
PICKLED_FILES = (*TRAIN_BATCHES, TEST_BATCH)
BINARY_FILES = tuple(f"{name}.bin" for name in PICKLED_FILES)
PICKLED_ARCHIVE = "cifar-10-python.tar.gz"
BINARY_ARCHIVE = "cifar-10-binary.tar.gz"

_PIXELS = 32 * 32 * 3
_NAMES_BYTES = 256  # a pickled batch also names each image's file
_SLACK = 1 << 16
_Batch = tuple[np.ndarray, np.ndarray]  # uint8 (rows, 3072), int32 (rows,)
_Named = Iterator[tuple[str, str, bytes]]  # batch name, where it came from, content


def read_pickled(folder: Path, geometry: Geometry) -> dict[str, Split]:
    """Read `cifar-10-batches-py`.

    Args:
        folder: holds all of `PICKLED_FILES`.
        geometry: what they must contain.

    Returns:
        {"train": Split, "test": Split} in the order of the batches.

    Raises:
        DataError: a file is damaged, of another size, or asks to run something; it is named.
    """
    return _splits(_in_folder(folder, "", geometry), _parse_pickled, geometry, folder)


def read_binary(folder: Path, geometry: Geometry) -> dict[str, Split]:
    """Read `cifar-10-batches-bin`; as `read_pickled`, with `BINARY_FILES`."""
    return _splits(_in_folder(folder, ".bin", geometry), _parse_binary, geometry, folder)


def read_pickled_archive(folder: Path, geometry: Geometry) -> dict[str, Split]:
    """Read `PICKLED_ARCHIVE` in `folder` without unpacking it to disk; as `read_pickled`."""
    path = folder / PICKLED_ARCHIVE
    members = _in_archive(path, "cifar-10-batches-py/", "", geometry)
    return _splits(members, _parse_pickled, geometry, path)


def read_binary_archive(folder: Path, geometry: Geometry) -> dict[str, Split]:
    """Read `BINARY_ARCHIVE` in `folder` without unpacking it to disk; as `read_pickled`."""
    path = folder / BINARY_ARCHIVE
    members = _in_archive(path, "cifar-10-batches-bin/", ".bin", geometry)
    return _splits(members, _parse_binary, geometry, path)


def _rows(name: str, geometry: Geometry) -> int:
    if name == TEST_BATCH:
        return geometry.test_size
    return geometry.train_size // len(TRAIN_BATCHES)


def _limit(name: str, geometry: Geometry) -> int:
    return _rows(name, geometry) * (_PIXELS + _NAMES_BYTES) + _SLACK


def _in_folder(folder: Path, suffix: str, geometry: Geometry) -> _Named:
    for name in PICKLED_FILES:
        path = folder / f"{name}{suffix}"
        try:
            with path.open("rb") as file:
                yield name, str(path), file.read(_limit(name, geometry))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _in_archive(path: Path, prefix: str, suffix: str, geometry: Geometry) -> _Named:
    wanted = {f"{prefix}{name}{suffix}": name for name in PICKLED_FILES}
    largest = sum(_limit(name, geometry) for name in PICKLED_FILES) + _SLACK
    try:
        with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                if member.offset_data + member.size > largest:
                    raise DataError(f"{path}: unpacks to more than {largest} bytes")
                file = archive.extractfile(member) if member.isreg() else None
                if member.name in wanted and file is not None:
                    yield wanted.pop(member.name), f"{path}: {member.name}", file.read()
            if len(unzipped.read(largest)) == largest:  # its end is where the checksum is
                raise DataError(f"{path}: unpacks to more than {largest} bytes")
    except (
        *(tarfile.TarError, gzip.BadGzipFile, zlib.error),
        *(EOFError, ValueError, OverflowError),
    ) as error:
        raise DataError(f"{path}: is no intact tar.gz archive ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _splits(
    batches: _Named,
    parse: Callable[[bytes, int], _Batch],
    geometry: Geometry,
    origin: Path,
) -> dict[str, Split]:
    parsed: dict[str, Split] = {}
    for name, source, data in batches:
        try:
            pixels, labels = parse(data, _rows(name, geometry))
        except ValueError as error:
            raise DataError(f"{source}: {error}") from error
        if labels.min() < 0 or labels.max() >= geometry.num_classes:
            outside = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"{source}: found label {outside}, expected 0 to {geometry.num_classes - 1}"
            )
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parsed[name] = Split(images, labels)
    missing = [name for name in PICKLED_FILES if name not in parsed]
    if missing:
        raise DataError(f"{origin}: lacks {', '.join(missing)}")
    train = [parsed[name] for name in TRAIN_BATCHES]
    return {
        "train": Split(
            np.concatenate([batch.images for batch in train]),
            np.concatenate([batch.labels for batch in train]),
        ),
        "test": Split(np.ascontiguousarray(parsed[TEST_BATCH].images), parsed[TEST_BATCH].labels),
    }


def _parse_binary(data: bytes, rows: int) -> _Batch:
    if len(data) != rows * (1 + _PIXELS):
        raise ValueError(
            f"found {len(data)} bytes, expected {rows * (1 + _PIXELS)} ({rows} images)"
        )
    table = np.frombuffer(data, np.uint8).reshape(rows, 1 + _PIXELS)
    return table[:, 1:], table[:, 0].astype(np.int32)


def _parse_pickled(data: bytes, rows: int) -> _Batch:
    content = pickles.load(data)
    if not isinstance(content, dict):
        raise ValueError(f"found a pickled {type(content).__name__}, expected a dict")
    content = {key.decode() if isinstance(key, bytes) else key: content[key] for key in content}
    lacking = {"data", "labels"} - content.keys()
    if lacking:
        raise ValueError(f"its dict lacks {', '.join(sorted(lacking))}")
    pixels, labels = pickles.byte_array(content["data"]), content["labels"]
    if pixels.shape != (rows, _PIXELS):
        raise ValueError(f"its data has the shape {pixels.shape}, expected {(rows, _PIXELS)}")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("its labels are no list of integers")
    if len(labels) != rows:
        raise ValueError(f"found {len(labels)} labels, expected {rows}")
    return pixels, np.clip(np.array(labels, dtype=object), -1, 256).astype(np.int32)

"""Small original files for the tests of pb_jax.data, written by other code than the readers'."""

import dataclasses
import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pb_jax.data import DataError
from pb_jax.data.dataset import Split
from pb_jax.data.specs import CIFAR10, MNIST, Spec

PREFIXES = {"train": "train", "test": "t10k"}


def tiny(spec: Spec, train: int = 20, test: int = 6) -> Spec:
    """`spec` with few images."""
    return dataclasses.replace(
        spec, geometry=spec.geometry._replace(train_size=train, test_size=test)
    )


TINY_MNIST = tiny(MNIST)
TINY_CIFAR10 = tiny(CIFAR10)


def random_splits(spec: Spec, seed: int = 0) -> dict[str, Split]:
    """Random content that fits `spec`."""
    rng = np.random.default_rng(seed)
    geometry = spec.geometry
    return {
        split: Split(
            rng.integers(0, 256, (geometry.size(split), *geometry.shape), dtype=np.uint8),
            rng.integers(0, geometry.num_classes, geometry.size(split), dtype=np.int32),
        )
        for split in ("train", "test")
    }


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `call` and "", or None and the message of its DataError."""
    try:
        return call(), ""
    except DataError as error:
        return None, str(error)


def assert_same(actual: dict[str, Split], expected: dict[str, Split]) -> None:
    """Same values, shapes and types in both splits."""
    assert actual.keys() == expected.keys()
    for split in expected:
        np.testing.assert_array_equal(actual[split].images, expected[split].images, strict=True)
        np.testing.assert_array_equal(actual[split].labels, expected[split].labels, strict=True)


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    magic = 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.astype("u1").tobytes()


def write_idx(folder: Path, splits: dict[str, Split]) -> None:
    """The four files of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in PREFIXES.items():
        images, labels = splits[split]
        images_path = folder / f"{prefix}-images-idx3-ubyte.gz"
        labels_path = folder / f"{prefix}-labels-idx1-ubyte.gz"
        images_path.write_bytes(gzip.compress(idx_bytes(images[..., 0]), mtime=0))
        labels_path.write_bytes(gzip.compress(idx_bytes(labels), mtime=0))


def batches(splits: dict[str, Split]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """CIFAR's six batches: planar rows (N, 3072) and labels."""
    images, labels = splits["train"]
    parts = dict(zip([f"data_batch_{i}" for i in range(1, 6)], np.split(images, 5), strict=True))
    parts["test_batch"] = splits["test"].images
    label_parts = [*np.split(labels, 5), splits["test"].labels]
    return {
        name: (np.moveaxis(part, 3, 1).reshape(len(part), 3072), [int(x) for x in part_labels])
        for (name, part), part_labels in zip(parts.items(), label_parts, strict=True)
    }


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it: byte strings, protocol 2, numpy's old module names."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\nq\x05" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    label_list = b"]r\x00\x01\x00\x00(" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}q\x01(" + text(b"data") + array + text(b"labels") + label_list + b"u."


def python3_pickle(pixels: np.ndarray, labels: list[int], protocol: int = 4) -> bytes:
    """The same, written by the running Python and numpy."""
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=protocol)


def binary_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch of the binary version."""
    return b"".join(
        bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True)
    )


def cifar_files(splits: dict[str, Split], form: str) -> dict[str, bytes]:
    """File name to content; `form` is "py" or "bin"."""
    if form == "py":
        return {name: python2_pickle(*batch) for name, batch in batches(splits).items()}
    return {f"{name}.bin": binary_batch(*batch) for name, batch in batches(splits).items()}


def write_cifar(folder: Path, splits: dict[str, Split], form: str) -> None:
    """CIFAR's unpacked files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in cifar_files(splits, form).items():
        (folder / name).write_bytes(content)


def cifar_archive(splits: dict[str, Split], form: str) -> bytes:
    """CIFAR's tar.gz archive."""
    files = {f"cifar-10-batches-{form}/{k}": v for k, v in cifar_files(splits, form).items()}
    return tar_gz({f"cifar-10-batches-{form}/readme.html": b"<html>", **files})


def tar_gz(files: dict[str, bytes]) -> bytes:
    """An archive of `files`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tree(folder: Path) -> set[str]:
    """Every file and empty folder below `folder`, but for lock files."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.is_file() and path.name != ".lock") or (path.is_dir() and not any(path.iterdir()))
    }


def jpeg(seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """A JPEG picture of `size` (width, height), different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


FLICKR8K_LISTS = {"train": ["a.jpg", "b.jpg", "c.jpg"], "validation": ["d.jpg"], "test": ["e.jpg"]}


@dataclasses.dataclass
class Flickr8kFiles:
    """The original files of a small Flickr8k without any irregularity, to be made irregular."""

    images: dict[str, bytes] = dataclasses.field(
        default_factory=lambda: {f"{name}.jpg": jpeg(ord(name)) for name in "abcde"}
    )
    captions: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: {
            f"{name}.jpg": [f"{name.upper()} dog , number {n} ." for n in range(5)]
            for name in "abcde"
        }
    )
    lists: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: {split: list(names) for split, names in FLICKR8K_LISTS.items()}
    )
    more_lines: str = ""

    def write(
        self, source: Path, images: str = "Flicker8k_Dataset", texts: str = "Flickr8k_text"
    ) -> Path:
        """Write them below `source`; returns it."""
        (source / images).mkdir(parents=True)
        (source / texts).mkdir(parents=True, exist_ok=True)
        for name, content in self.images.items():
            (source / images / name).write_bytes(content)
        lines = [
            f"{name}#{n}\t{text}\n"
            for name, texts_of_name in self.captions.items()
            for n, text in enumerate(texts_of_name)
        ]
        (source / texts / "Flickr8k.token.txt").write_text("".join(lines) + self.more_lines)
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
            content = "".join(f"{line}\n" for line in self.lists[split])
            (source / texts / f"Flickr_8k.{name}Images.txt").write_text(content)
        return source

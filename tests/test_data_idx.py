import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pb_jax.data import DataError, idx
from tests.data_files import TINY_MNIST, assert_same, attempt, idx_bytes, random_splits, write_idx

SPLITS = random_splits(TINY_MNIST)
GEOMETRY = TINY_MNIST.geometry
IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "t10k-labels-idx1-ubyte.gz"


def test_reads_what_was_written(tmp_path):
    write_idx(tmp_path, SPLITS)
    assert_same(idx.read(tmp_path, GEOMETRY), SPLITS)


TRAIN = idx_bytes(SPLITS["train"].images[..., 0])
TEST_LABELS = idx_bytes(SPLITS["test"].labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(IMAGES, gzip.compress(TRAIN)[:-50], "cut short", id="gz cut short"),
        pytest.param(IMAGES, gzip.compress(TRAIN)[:5], "cut short", id="gz header cut"),
        pytest.param(IMAGES, b"", "found 0 bytes", id="empty"),
        pytest.param(IMAGES, TRAIN, "no intact gzip", id="not zipped"),
        pytest.param(
            IMAGES, gzip.compress(TRAIN)[:-8] + bytes(8), "no intact gzip", id="wrong crc"
        ),
        pytest.param(
            IMAGES,
            gzip.compress(struct.pack(">i", 2049) + TRAIN[4:]),
            "magic number is 2049, expected 2051",
            id="magic number",
        ),
        pytest.param(
            IMAGES,
            gzip.compress(idx_bytes(SPLITS["train"].images[:, :27, :, 0])),
            r"shape \(20, 27, 28\), expected \(20, 28, 28\)",
            id="dimensions",
        ),
        pytest.param(
            IMAGES,
            gzip.compress(idx_bytes(SPLITS["train"].images[:19, ..., 0])),
            r"shape \(19, 28, 28\)",
            id="count",
        ),
        pytest.param(IMAGES, gzip.compress(TRAIN[:-1]), "15695 bytes, expected 15696", id="short"),
        pytest.param(IMAGES, gzip.compress(TRAIN + b"x"), "more bytes, expected 15696", id="long"),
        pytest.param(
            LABELS,
            gzip.compress(TEST_LABELS[:-1] + b"\x0a"),
            "found label 10, expected 0 to 9",
            id="label",
        ),
        pytest.param(LABELS, gzip.compress(TEST_LABELS[:6]), "a header of 8", id="header"),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    write_idx(tmp_path, SPLITS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        idx.read(tmp_path, GEOMETRY)
    assert str(tmp_path / name) in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    write_idx(tmp_path, SPLITS)
    (tmp_path / IMAGES).unlink()
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(DataError, match=f"{IMAGES}: cannot be read: Is a directory"):
        idx.read(tmp_path, GEOMETRY)


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    write_idx(tmp_path, SPLITS)
    (tmp_path / IMAGES).write_bytes(gzip.compress(TRAIN + bytes(50_000_000)))
    with pytest.raises(DataError, match="unpacks to more bytes"):
        idx.read(tmp_path, GEOMETRY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("idx")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_compressed_bytes_never_give_wrong_data(folder, data):
    write_idx(folder, SPLITS)
    path = folder / data.draw(st.sampled_from(idx.FILES))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    splits, message = attempt(lambda: idx.read(folder, GEOMETRY))
    if message:
        assert path.name in message
    else:
        assert_same(splits, SPLITS)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 20), value=st.integers(0, 255), cut=st.integers(0, 30))
def test_mutated_headers_give_an_error_or_images_of_the_right_shape(folder, position, value, cut):
    write_idx(folder, SPLITS)
    content = bytearray(TRAIN)
    content[position] = value
    (folder / IMAGES).write_bytes(gzip.compress(content[cut:]))
    splits, message = attempt(lambda: idx.read(folder, GEOMETRY))
    if message:
        assert IMAGES in message
    else:
        images = splits["train"].images
        assert cut == 0
        assert (images != SPLITS["train"].images).sum() <= 1
        assert images.dtype == np.uint8

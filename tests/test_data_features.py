import json
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections import namedtuple

import numpy as np
import pytest

from pb_jax.data import DataError
from pb_jax.data.features import compute_or_map
from pb_jax.data.pictures import ArrayImages

SHAPE = (2, 3, 5)
FILTERS = np.random.default_rng(0).standard_normal((8 * 8 * 3, 30)).astype(np.float32)


def images(count=11, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return ArrayImages([f"picture{i}" for i in range(count)], pixels)


class Encode:
    """A linear map; counts its calls."""

    def __init__(self, fails_at=None):
        self.shapes = []
        self.fails_at = fails_at

    def __call__(self, pixels):
        assert pixels.dtype == np.uint8
        if len(self.shapes) == self.fails_at:
            raise KeyboardInterrupt
        self.shapes.append(pixels.shape)
        return (pixels.reshape(len(pixels), -1) / np.float32(255) @ FILTERS).reshape(-1, *SHAPE)


def compute(folder, encode=None, source=None, **options):
    settings = {
        "image_size": 8,
        "shape": SHAPE,
        "fingerprint": "linear",
        "folder": folder,
        "batch": 4,
        "progress": False,
    }
    encode = Encode() if encode is None else encode
    return compute_or_map(images() if source is None else source, encode, **settings | options)


def expected(source=None):
    source = images() if source is None else source
    pixels = source.read(range(len(source)))
    return Encode()(pixels).astype(np.float16)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("count", [1, 3, 4, 8, 11])
def test_values_order_and_one_batch_shape(tmp_path, count):
    encode, source = Encode(), images(count)
    found = compute(tmp_path / "new" / "folder", encode, source)
    np.testing.assert_allclose(found, expected(source), rtol=2e-3)  # last place of float16
    assert isinstance(found, np.memmap)
    assert (found.dtype, found.shape) == (np.float16, (count, *SHAPE))
    assert not found.flags.writeable
    assert encode.shapes == [(4, 8, 8, 3)] * -(-count // 4)


def test_a_second_time_computes_nothing(tmp_path):
    first = compute(tmp_path)
    again = Encode()
    np.testing.assert_array_equal(compute(tmp_path, again), first)
    assert again.shapes == []


def test_pictures_come_at_the_wanted_size(tmp_path):
    encode = Encode()
    with pytest.raises(ValueError, match="matmul"):  # the filters are for 8 x 8
        compute(tmp_path, encode, image_size=6)
    assert encode.shapes == [(4, 6, 6, 3)]
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "another", "encode": lambda x: -Encode()(x)},
        {"source": images(seed=1)},
        {"source": images(10)},
        {"image_size": 16, "encode": lambda x: Encode()(x[:, ::2, ::2])},
        {"shape": (3, 2, 5), "encode": lambda x: Encode()(x).reshape(-1, 3, 2, 5)},
    ],
    ids=["encoder", "pictures", "fewer", "size", "shape"],
)
def test_anything_else_lies_beside(tmp_path, other):
    first = np.array(compute(tmp_path))
    found = compute(tmp_path, **other)
    assert len(files(tmp_path)) == 4
    assert found.shape != first.shape or not np.array_equal(found, first)
    again = Encode()
    np.testing.assert_array_equal(compute(tmp_path, again), first)
    assert again.shapes == []


def cut(array, index):
    os.truncate(array, array.stat().st_size - 7)


def flip(array, index):
    content = bytearray(array.read_bytes())
    content[-20] ^= 1
    array.write_bytes(content)


def no_array(array, index):
    array.unlink()


def no_json(array, index):
    index.write_text("{")


def other_json(array, index):
    index.write_text("[]")


def other_format(array, index):
    content = json.loads(index.read_text())
    content["about"]["format"] = 0
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [cut, flip, no_array, no_json, other_json, other_format])
def test_damage_is_told_and_mended(tmp_path, capsys, damage):
    first = np.array(compute(tmp_path))
    (array,), (index,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    damage(array, index)
    encode = Encode()
    np.testing.assert_array_equal(compute(tmp_path, encode, progress=True), first)
    said = capsys.readouterr().err
    assert str(array) in said
    assert "damaged" in said
    assert "computing features of 11 images" in said
    assert len(encode.shapes) == 3
    assert files(tmp_path) == [index.name, array.name]
    assert compute(tmp_path, Encode(fails_at=0)).shape == (11, *SHAPE)


def test_a_lost_index_means_computing_again(tmp_path):
    compute(tmp_path)
    next(tmp_path.glob("*.json")).unlink()
    encode = Encode()
    compute(tmp_path, encode)
    assert len(encode.shapes) == 3


@pytest.mark.parametrize("before", [False, True])
def test_an_interruption_leaves_nothing_half(tmp_path, before):
    if before:
        compute(tmp_path)
        cut(next(tmp_path.glob("*.npy")), None)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, Encode(fails_at=2))
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".*.part"))
    np.testing.assert_allclose(compute(tmp_path), expected(), rtol=2e-3)


def test_the_rest_of_a_killed_run_is_removed(tmp_path):
    compute(tmp_path)
    (array,), (index,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    index.unlink()
    (tmp_path / f".{array.name}.12345.part").write_bytes(b"half")
    (tmp_path / ".0123456789abcdef.npy.12345.part").write_bytes(b"of somebody else")
    compute(tmp_path)
    assert files(tmp_path) == [".0123456789abcdef.npy.12345.part", index.name, array.name]


def test_reading_goes_on_while_computing(tmp_path):
    """The second batch is asked for while the first is being computed."""
    asked = [threading.Event() for _ in range(3)]

    class Watched(ArrayImages):
        def read(self, indices, size=None):
            asked[indices[0] // 4].set()
            return super().read(indices, size)

    inner = images()
    source = Watched(inner.names, inner.read(range(11)))
    waited = []

    def encode(pixels):
        upcoming = min(len(waited) + 1, 2)
        waited.append(asked[upcoming].wait(10))
        return Encode()(pixels)

    compute(tmp_path, encode, source)
    assert waited == [True] * 3


def test_an_unreadable_picture(tmp_path):
    class Broken(ArrayImages):
        def read(self, indices, size=None):
            if 5 in indices:
                raise DataError("picture5: is no picture")
            return super().read(indices, size)

    inner = images()
    with pytest.raises(DataError, match="picture5"):
        compute(tmp_path, source=Broken(inner.names, inner.read(range(11))))
    assert files(tmp_path) == []


@pytest.mark.parametrize("value", [1e5, np.nan, np.inf])
def test_features_that_float16_cannot_hold(tmp_path, value):
    def encode(pixels):
        found = np.zeros((len(pixels), *SHAPE), np.float32)
        found[1, 1, 2, 3] = value
        return found

    with pytest.raises(DataError, match="picture1: its features are not finite"):
        compute(tmp_path, encode)
    assert files(tmp_path) == []


def test_padding_is_not_checked(tmp_path):
    """What an encoder makes of the zeros that fill the last batch is nobody's business."""

    def encode(pixels):
        empty = (pixels == 0).all((1, 2, 3))
        found = Encode()(pixels)
        found[empty] = np.nan
        return found

    np.testing.assert_allclose(compute(tmp_path, encode), expected(), rtol=2e-3)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        compute(tmp_path, source=images(0))
    with pytest.raises(ValueError, match=r"must be \(2, 3, 6\), got \(2, 3, 5\)"):
        compute(tmp_path, shape=(2, 3, 6))
    assert files(tmp_path) == []


def test_too_little_room_is_told_before_computing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    encode = Encode()
    with pytest.raises(DataError, match="Make room or choose another folder") as error:
        compute(tmp_path, encode)
    assert str(tmp_path) in str(error.value)
    assert encode.shapes == []


def test_a_disk_that_fills_up(tmp_path):
    """The system refuses to let a file grow, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
    try:
        with pytest.raises(DataError, match="Make room or choose another folder"):
            compute(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another folder"):
        compute(tmp_path / "file")


def _in_a_process(folder, calls):
    class Slow(Encode):
        def __call__(self, pixels):
            time.sleep(0.1)
            calls.put(len(pixels))
            return super().__call__(pixels)

    compute(folder, Slow())


def test_two_processes_compute_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    calls = context.Queue()
    processes = [context.Process(target=_in_a_process, args=(tmp_path, calls)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [calls.get(timeout=5) for _ in range(3)] == [4, 4, 4]
    assert calls.empty()

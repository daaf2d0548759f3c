import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pb_jax.data import DataError, cifar
from tests.data_files import (
    TINY_CIFAR10,
    assert_same,
    attempt,
    batches,
    binary_batch,
    cifar_archive,
    cifar_files,
    python2_pickle,
    python3_pickle,
    random_splits,
    tar_gz,
    write_cifar,
)

SPLITS = random_splits(TINY_CIFAR10)
GEOMETRY = TINY_CIFAR10.geometry
READERS = {"py": cifar.read_pickled, "bin": cifar.read_binary}
ARCHIVES = {
    "py": (cifar.PICKLED_ARCHIVE, cifar.read_pickled_archive),
    "bin": (cifar.BINARY_ARCHIVE, cifar.read_binary_archive),
}
PIXELS, LABELS = batches(SPLITS)["data_batch_2"]


@pytest.mark.parametrize("form", ["py", "bin"])
def test_reads_what_was_written(tmp_path, form):
    write_cifar(tmp_path, SPLITS, form)
    assert_same(READERS[form](tmp_path, GEOMETRY), SPLITS)


@pytest.mark.parametrize("form", ["py", "bin"])
def test_reads_archives_and_unpacks_nothing(tmp_path, form):
    name, read = ARCHIVES[form]
    (tmp_path / name).write_bytes(cifar_archive(SPLITS, form))
    assert_same(read(tmp_path, GEOMETRY), SPLITS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_pickles_that_python_3_wrote(tmp_path, protocol):
    write_cifar(tmp_path, SPLITS, "py")
    (tmp_path / "data_batch_2").write_bytes(python3_pickle(PIXELS, LABELS, protocol))
    assert_same(cifar.read_pickled(tmp_path, GEOMETRY), SPLITS)


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("bin", binary_batch(PIXELS, LABELS)[:-1], "found 12291 bytes, expected 12292"),
        ("bin", binary_batch(PIXELS, LABELS) + b"x", "found 12293 bytes, expected 12292"),
        ("bin", b"", "found 0 bytes"),
        ("bin", binary_batch(PIXELS, [1, 2, 3, 10]), "found label 10, expected 0 to 9"),
        ("py", python2_pickle(PIXELS[:3], LABELS[:3]), r"shape \(3, 3072\), expected \(4, 3072\)"),
        ("py", python2_pickle(PIXELS[:, :9], LABELS), r"shape \(4, 9\)"),
        ("py", python2_pickle(PIXELS, LABELS[:3]), "found 3 labels, expected 4"),
        ("py", python2_pickle(PIXELS, [1, 2, 3, -1]), "found label -1, expected 0 to 9"),
        ("py", python2_pickle(PIXELS, [1, 2, 3, 10]), "found label 10"),
        ("py", python3_pickle(PIXELS, [1, 2, 3, 10**30]), "found label 256"),
        ("py", python3_pickle(PIXELS, ["1"] * 4), "no list of integers"),  # pyright: ignore
        ("py", python2_pickle(PIXELS, LABELS)[:-20], "damaged"),
        ("py", python2_pickle(PIXELS, LABELS).replace(b"data", b"date"), "lacks data"),
        ("py", b"\x80\x02]q\x01.", "a pickled list, expected a dict"),
        ("py", python2_pickle(PIXELS.astype("f4"), LABELS), "damaged"),
        ("py", b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
    ],
)
def test_damage_is_named(tmp_path, form, content, message):
    write_cifar(tmp_path, SPLITS, form)
    path = tmp_path / ("data_batch_2" + (".bin" if form == "bin" else ""))
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        READERS[form](tmp_path, GEOMETRY)
    assert str(path) in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data_batch_1\.bin: cannot be read"):
        cifar.read_binary(tmp_path, GEOMETRY)
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: cannot be read"):
        cifar.read_binary_archive(tmp_path, GEOMETRY)


def _renamed(prefix: str) -> bytes:
    return tar_gz({f"{prefix}{k}": v for k, v in cifar_files(SPLITS, "bin").items()})


def _with_link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    return buffer.getvalue()


GOOD = cifar_archive(SPLITS, "bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-3000], "no intact tar.gz"),
        (GOOD[:-6] + bytes(6), "no intact tar.gz"),
        (gzip.decompress(GOOD), "no intact tar.gz"),
        (gzip.compress(b"no archive" * 200), "no intact tar.gz"),
        (_renamed("../"), "lacks data_batch_1, .*test_batch"),
        (_renamed("/absolute/"), "lacks"),
        (_with_link(), "lacks data_batch_1"),
        (tar_gz({"huge": bytes(1_000_000)}), "unpacks to more than"),
        (gzip.compress(gzip.decompress(GOOD) + bytes(1_000_000)), "unpacks to more than"),
    ],
    # A gzip header holds the time: ids made of the bytes would differ between processes.
    ids=[
        "cut short",
        "no checksum",
        "not compressed",
        "no tar",
        "parent folder",
        "absolute",
        "link",
        "one huge member",
        "padded",
    ],
)
def test_damaged_archive_is_named_and_nothing_is_unpacked(tmp_path, content, message):
    path = tmp_path / cifar.BINARY_ARCHIVE
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        cifar.read_binary_archive(tmp_path, GEOMETRY)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cifar")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_archives_never_give_wrong_data(folder, data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    (folder / cifar.BINARY_ARCHIVE).write_bytes(content[:cut])
    splits, message = attempt(lambda: cifar.read_binary_archive(folder, GEOMETRY))
    if message:
        assert cifar.BINARY_ARCHIVE in message
    else:
        assert_same(splits, SPLITS)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), form=st.sampled_from(["py", "bin"]))
def test_mutated_batches_give_an_error_or_images_of_the_right_shape(folder, data, form):
    write_cifar(folder / form, SPLITS, form)
    path = folder / form / ("data_batch_2" + (".bin" if form == "bin" else ""))
    content = bytearray(path.read_bytes())
    middle = (200, len(content) - 100) if form == "py" else (0, len(content))
    positions = st.integers(0, len(content) - 1).filter(
        lambda i: form == "bin" or not middle[0] <= i < middle[1]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(positions)] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    splits, message = attempt(lambda: READERS[form](folder / form, GEOMETRY))
    if message:
        assert path.name in message
        return
    assert splits["train"].images.shape == SPLITS["train"].images.shape
    assert splits["train"].images.dtype == np.uint8
    assert 0 <= splits["train"].labels.min() <= splits["train"].labels.max() < 10
    np.testing.assert_array_equal(splits["train"].images[8:], SPLITS["train"].images[8:])

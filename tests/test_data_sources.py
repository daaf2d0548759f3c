import dataclasses

import pytest

from pb_jax.data import DataError, cifar, sources, specs
from pb_jax.data.dataset import content_digest
from pb_jax.data.specs import FASHION_MNIST
from tests.data_files import (
    TINY_CIFAR10,
    TINY_MNIST,
    assert_same,
    cifar_archive,
    random_splits,
    tiny,
    write_cifar,
    write_idx,
)

GREY = random_splits(TINY_MNIST)
COLOUR = random_splits(TINY_CIFAR10)
TINY_FASHION = tiny(FASHION_MNIST)


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        *[(TINY_MNIST, folder) for folder in ("mnist", "MNIST/raw", ".")],
        *[
            (TINY_FASHION, folder)
            for folder in ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", ".")
        ],
    ],
)
def test_finds_idx_files(tmp_path, spec, folder):
    write_idx(tmp_path / folder, GREY)
    assert_same(sources.read(spec, tmp_path), GREY)


@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("inside", [True, False])
def test_finds_cifar_batches(tmp_path, form, inside):
    write_cifar(tmp_path / (f"cifar-10-batches-{form}" if inside else "."), COLOUR, form)
    assert_same(sources.read(TINY_CIFAR10, tmp_path), COLOUR)


@pytest.mark.parametrize(
    ("form", "name"), [("py", cifar.PICKLED_ARCHIVE), ("bin", cifar.BINARY_ARCHIVE)]
)
def test_finds_cifar_archives(tmp_path, form, name):
    (tmp_path / name).write_bytes(cifar_archive(COLOUR, form))
    assert_same(sources.read(TINY_CIFAR10, tmp_path), COLOUR)


def test_a_complete_layout_is_taken_before_an_incomplete_one(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", COLOUR, "py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    write_cifar(tmp_path / "cifar-10-batches-bin", COLOUR, "bin")
    assert_same(sources.read(TINY_CIFAR10, tmp_path), COLOUR)


def test_missing_files_are_listed(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", COLOUR, "py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py: lacks test_batch\n"):
        sources.read(TINY_CIFAR10, tmp_path)


def test_an_empty_folder_gets_the_list_of_what_may_be_there(tmp_path):
    with pytest.raises(DataError) as caught:
        sources.read(TINY_CIFAR10, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: holds no files of cifar10\n")
    for part in (
        "cifar-10-batches-py/data_batch_1, ",
        "cifar-10-batches-bin/data_batch_1.bin, ",
        "  cifar-10-binary.tar.gz",
        "  cifar-10-python.tar.gz",
    ):
        assert part in message


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="gone: is no folder"):
        sources.read(TINY_MNIST, tmp_path / "gone")


def test_files_of_another_dataset_are_refused(tmp_path, monkeypatch):
    digests = {name: content_digest(split) for name, split in GREY.items()}
    known = dataclasses.replace(TINY_MNIST, digests=digests)
    monkeypatch.setitem(specs.DATASETS, "mnist", known)
    write_idx(tmp_path, GREY)
    assert_same(sources.read(known, tmp_path), GREY)
    with pytest.raises(DataError, match="holds mnist, expected fashion_mnist"):
        sources.read(TINY_FASHION, tmp_path)

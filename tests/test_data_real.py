"""The real MNIST and CIFAR-10, where PB_JAX_DATA names the folder of their original files."""

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pb_jax.data import cifar, load, sources
from pb_jax.data.dataset import content_digest
from pb_jax.data.specs import CIFAR10, FASHION_MNIST, MNIST

pytestmark = pytest.mark.real_data

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def source() -> Path:
    if "PB_JAX_DATA" not in os.environ:
        pytest.skip("PB_JAX_DATA is not set")
    return Path(os.environ["PB_JAX_DATA"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tfds")


def test_mnist_end_to_end(source, data_dir):
    dataset = load("mnist", data_dir=data_dir, source_dir=source, progress=False)
    assert dataset.train.images.shape == (60_000, 28, 28, 1)
    assert dataset.test.images.shape == (10_000, 28, 28, 1)
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = gzip.decompress((source / f"mnist/{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((source / f"mnist/{prefix}-labels-idx1-ubyte.gz").read_bytes())
        assert getattr(dataset, split).images.tobytes() == images[16:]
        assert getattr(dataset, split).labels.astype(np.uint8).tobytes() == labels[8:]
    pixels = dataset.train.images / 255.0
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (*dataset.mean, *dataset.std)


def test_cifar10_end_to_end(source, data_dir):
    dataset = load("cifar10", data_dir=data_dir, source_dir=source, progress=False)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    for index in range(5):
        path = source / "cifar-10-batches-py" / f"data_batch_{index + 1}"
        batch = pickle.loads(path.read_bytes(), encoding="bytes")
        rows = slice(10_000 * index, 10_000 * (index + 1))
        planes = np.moveaxis(dataset.train.images[rows], 3, 1).reshape(10_000, 3072)
        np.testing.assert_array_equal(planes, batch[b"data"])
        assert dataset.train.labels[rows].tolist() == batch[b"labels"]
    means = dataset.train.images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, dataset.mean, atol=5e-5)
    stds = dataset.train.images.std((1, 2)).mean(0) / 255
    np.testing.assert_allclose(stds, dataset.std, atol=1e-3)
    limited = load("cifar10", data_dir=data_dir, limit_train=5000, progress=False)
    np.testing.assert_array_equal(limited.train.images, dataset.train.images[:5000])


@pytest.mark.parametrize("spec", [MNIST, CIFAR10], ids=["mnist", "cifar10"])
def test_the_recorded_digests_are_those_of_the_original_files(source, spec):
    splits = sources.read(spec, source)
    assert {name: content_digest(split) for name, split in splits.items()} == spec.digests


def test_both_layouts_of_cifar10_hold_the_same(source, tmp_path):
    splits = sources.read(CIFAR10, source)
    for name, images, labels in [
        *zip(
            cifar.TRAIN_BATCHES,
            np.split(splits["train"].images, 5),
            np.split(splits["train"].labels, 5),
            strict=True,
        ),
        (cifar.TEST_BATCH, *splits["test"]),
    ]:
        rows = np.empty((10_000, 3073), np.uint8)
        rows[:, 0] = labels
        rows[:, 1:] = images.transpose(0, 3, 1, 2).reshape(10_000, 3072)
        rows.tofile(tmp_path / f"{name}.bin")
    binary = cifar.read_binary(tmp_path, CIFAR10.geometry)
    assert {name: content_digest(split) for name, split in binary.items()} == CIFAR10.digests


def test_fashion_mnist_of_the_debian_package():
    if not FASHION.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    splits = sources.read(FASHION_MNIST, FASHION)
    assert sources.published_name(splits) == "fashion_mnist"
    pixels = splits["train"].images / 255.0
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (0.2860, 0.3530)

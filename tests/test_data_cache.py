import json

import numpy as np
import pytest

from pb_jax.data import cache
from pb_jax.data.dataset import Split, content_digest
from tests.data_files import TINY_MNIST, assert_same, random_splits

SPLITS = random_splits(TINY_MNIST)
DIGESTS = {name: content_digest(split) for name, split in SPLITS.items()}
GEOMETRY = TINY_MNIST.geometry


def test_maps_what_was_written(tmp_path):
    cache.write(tmp_path / "decoded", SPLITS, DIGESTS)
    splits = cache.read(tmp_path / "decoded", DIGESTS, GEOMETRY)
    assert splits is not None
    assert_same(splits, SPLITS)
    assert isinstance(splits["train"].images, np.memmap)
    assert not splits["train"].images.flags.writeable
    assert {path.name for path in (tmp_path / "decoded").iterdir()} == {
        "index.json",
        *(f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels")),
    }


def test_replaces_what_was_there(tmp_path):
    cache.write(tmp_path, SPLITS, DIGESTS)
    (tmp_path / ".train_images.npy.1.part").touch()  # of a process that was killed
    other = random_splits(TINY_MNIST, seed=1)
    digests = {name: content_digest(split) for name, split in other.items()}
    cache.write(tmp_path, other, digests)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY) is None
    splits = cache.read(tmp_path, digests, GEOMETRY)
    assert splits is not None
    assert_same(splits, other)
    assert len(list(tmp_path.iterdir())) == 5


def _edit_index(folder, **values):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **values}))


DAMAGE = {
    "no index": lambda folder: (folder / "index.json").unlink(),
    "half an index": lambda folder: (folder / "index.json").write_text('{"format":'),
    "older format": lambda folder: _edit_index(folder, format=0),
    "other content": lambda folder: _edit_index(folder, sha256={"train": "0", "test": "0"}),
    "an array is missing": lambda folder: (folder / "test_labels.npy").unlink(),
    "an array is cut short": lambda folder: (folder / "train_images.npy").write_bytes(
        (folder / "train_images.npy").read_bytes()[:-1]
    ),
    "an array has no header": lambda folder: (folder / "train_images.npy").write_bytes(
        bytes((folder / "train_images.npy").stat().st_size)
    ),
    "a header that does not end": lambda folder: (folder / "test_labels.npy").write_bytes(
        (folder / "test_labels.npy").read_bytes().replace(b"}", b"{", 1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_means_no_cache(tmp_path, damage):
    cache.write(tmp_path, SPLITS, DIGESTS)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY) is not None
    damage(tmp_path)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY) is None


def test_other_shapes_and_types_mean_no_cache(tmp_path):
    cache.write(tmp_path, SPLITS, DIGESTS)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY._replace(train_size=21)) is None
    wide = {k: Split(v.images, v.labels.astype(np.int64)) for k, v in SPLITS.items()}
    cache.write(tmp_path, wide, DIGESTS)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY) is None


def test_a_failed_write_leaves_no_cache(tmp_path, monkeypatch):
    cache.write(tmp_path, SPLITS, DIGESTS)

    def full(file, array):
        if array is SPLITS["test"].labels:
            raise OSError("no space")
        file.write(b"x")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        cache.write(tmp_path, SPLITS, DIGESTS)
    assert cache.read(tmp_path, DIGESTS, GEOMETRY) is None
    assert not list(tmp_path.glob("*.part"))

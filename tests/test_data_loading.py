import subprocess
import sys

import numpy as np
import pytest

from pb_jax.data import DataError, load, specs
from pb_jax.errors import UserError
from tests.data_files import TINY_MNIST, assert_same, random_splits, write_idx

GREY = random_splits(TINY_MNIST)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setitem(specs.DATASETS, "mnist", TINY_MNIST)
    write_idx(tmp_path / "source", GREY)
    return {"data_dir": tmp_path / "root", "source_dir": tmp_path / "source", "progress": False}


def test_prepares_on_first_use(folders, capfd):
    dataset = load("mnist", **folders)
    assert_same({"train": dataset.train, "test": dataset.test}, GREY)
    assert (dataset.name, dataset.num_classes) == ("mnist", 10)
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.mean, dataset.std) == ((0.1307,), (0.3081,))
    again = load("mnist", data_dir=str(folders["data_dir"]), progress=False)
    assert_same({"train": again.train, "test": again.test}, GREY)
    assert capfd.readouterr() == ("", "")


def test_limits_take_the_first_examples(folders):
    dataset = load("mnist", limit_train=3, limit_eval=6, **folders)
    np.testing.assert_array_equal(dataset.train.images, GREY["train"].images[:3])
    np.testing.assert_array_equal(dataset.train.labels, GREY["train"].labels[:3])
    assert len(dataset.test.labels) == 6


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"limit_train": 0}, "limit_train must be 1 to 1437 for digits; got 0"),
        ({"limit_train": 1438}, "limit_train must be 1 to 1437"),
        ({"limit_eval": -1}, "limit_eval must be 1 to 360 for digits; got -1"),
        ({"limit_eval": 2.0}, "limit_eval must be a whole number or None; got 2.0"),
        ({"limit_eval": True}, "must be a whole number"),
    ],
)
def test_impossible_limits(limit, message):
    with pytest.raises(DataError, match=message):
        load("digits", **limit)


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        load("digit")


def test_start_up_needs_tfds_only_to_prepare(folders):
    """Neither the digits nor a prepared dataset bring in TFDS, and load nothing else's imports."""
    load("mnist", **folders)
    program = f"""
import sys
from pb_jax.data import load, specs
assert not {{"tensorflow_datasets", "sklearn", "PIL", "tqdm"}} & sys.modules.keys()
from tests.data_files import TINY_MNIST
load("digits")
specs.DATASETS["mnist"] = TINY_MNIST
load("mnist", data_dir={str(folders["data_dir"])!r})
assert not {{"tensorflow_datasets", "array_record", "tensorflow"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)

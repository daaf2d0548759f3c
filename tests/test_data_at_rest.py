from pathlib import Path

import pytest

from pb_jax.data import DataError, at_rest
from pb_jax.data.progress import Progress
from pb_jax.data.specs import FLICKR8K, MNIST

SILENT = Progress(enabled=False)


def test_root_dir(monkeypatch, tmp_path):
    assert at_rest.root_dir(tmp_path) == tmp_path
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "env"))
    assert at_rest.root_dir(None) == tmp_path / "env"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_rest.root_dir(None) == tmp_path / "tensorflow_datasets"
    assert at_rest.root_dir("~/x") == tmp_path / "x"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"sha256": {"train": "1"}}', '{"sha256": ["train", "test"]}', None],
    ids=str,
)
def test_metadata_of_somebody_else(tmp_path, content):
    folder = at_rest.dataset_dir(MNIST, tmp_path)
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "metadata.json").write_text(content)
    with pytest.raises(DataError, match="was not written by pb_jax, or is damaged; move it away"):
        at_rest.metadata(MNIST, tmp_path, ("train", "test"))


def test_metadata(tmp_path):
    folder = at_rest.dataset_dir(FLICKR8K, tmp_path)
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text('{"sha256": {"train": 1, "test": "x"}, "notes": ["n"]}')
    found = at_rest.metadata(FLICKR8K, tmp_path, ("train",))
    assert found == {"sha256": {"train": "1"}, "notes": ["n"]}


def write(root: Path) -> None:
    """As little as a prepared dataset needs."""
    at_rest.dataset_dir(MNIST, root).mkdir(parents=True)
    (at_rest.dataset_dir(MNIST, root) / "dataset_info.json").touch()
    at_rest.derived_dir(MNIST, root).mkdir()


def test_what_is_done_in_what_order(tmp_path):
    done = []

    def cached():
        done.append("cached")
        return "content" if at_rest.derived_dir(MNIST, tmp_path).exists() else None

    def restore(write: bool):
        done.append(("restore", write))
        at_rest.derived_dir(MNIST, tmp_path).mkdir()
        return "content"

    def prepare(work: Path):
        done.append("prepare")
        write(work)

    def obtain():
        done.clear()
        calls = {"cached": cached, "restore": restore, "prepare": prepare}
        return at_rest.obtain(MNIST, tmp_path, SILENT, **calls)

    assert obtain() == "content"
    assert done == ["cached", "cached", "prepare", "cached"]
    assert obtain() == "content"
    assert done == ["cached"]
    at_rest.derived_dir(MNIST, tmp_path).rmdir()
    assert obtain() == "content"
    assert done == ["cached", "cached", ("restore", True), "cached"]


def test_content_that_vanishes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="mnist: changed while it was being read; try again"):
        at_rest.obtain(
            MNIST,
            tmp_path,
            SILENT,
            cached=lambda: None,
            restore=lambda write: "content",
            prepare=write,
        )

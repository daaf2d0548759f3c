import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pb_jax.data import DataError, at_rest, builders, caption_preparation, load_captions
from pb_jax.data.pictures import decode, resize
from pb_jax.data.progress import Progress
from pb_jax.data.specs import FLICKR8K
from tests.data_files import FLICKR8K_LISTS, Flickr8kFiles, jpeg, tree

SILENT = Progress(enabled=False)
PREPARED = {
    "flickr8k/decoded/captions.json",
    *(
        f"flickr8k/1.0.0/flickr8k-{split}.array_record-00000-of-00001"
        for split in ("train", "validation", "test")
    ),
    *(f"flickr8k/1.0.0/{name}.json" for name in ("dataset_info", "features", "metadata")),
}


def load(root: Path, source: Path | None = None) -> caption_preparation.Prepared:
    return caption_preparation.load(FLICKR8K, root, source_dir=source, progress=SILENT)


@pytest.fixture
def files() -> Flickr8kFiles:
    files = Flickr8kFiles()
    files.images["b.jpg"] = jpeg(1, (30, 20))
    files.captions["c.jpg"] = ["A dog's tail .", "Two dogs"]
    return files


@pytest.fixture
def source(tmp_path, files) -> Path:
    return files.write(tmp_path / "source" / "flickr8k").parent


@pytest.fixture
def root(tmp_path, source) -> Path:
    """A root folder with Flickr8k prepared."""
    load(tmp_path / "root", source)
    return tmp_path / "root"


def check(prepared: caption_preparation.Prepared, files: Flickr8kFiles) -> None:
    """It holds what the files hold."""
    assert prepared.splits.keys() == FLICKR8K_LISTS.keys()
    for split, names in FLICKR8K_LISTS.items():
        images, captions = prepared.splits[split]
        assert list(images.names) == names
        assert len(images) == len(captions) == len(names)
        assert {len(five) for five in captions} == {5}
        for index, name in enumerate(names):
            np.testing.assert_array_equal(images.read([index])[0], decode(files.images[name]))


def test_prepares_and_reads(tmp_path, source, files, capfd):
    prepared = load(tmp_path / "root", source)
    check(prepared, files)
    assert tree(tmp_path / "root") == PREPARED
    train = prepared.splits["train"]
    assert train.captions[0] == tuple(f"a dog number {n}" for n in range(5))
    assert train.captions[2][:2] == ("a dogs tail", "two dogs")
    assert set(train.captions[2][2:]) <= {"a dogs tail", "two dogs"}
    assert prepared.notes[0].startswith("1 image with fewer than five captions (c.jpg)")
    assert prepared.notes[1:] == (
        "train holds 3 images, the published one 6,000",
        "validation holds 1 image, the published one 1,000",
        "test holds 1 image, the published one 1,000",
    )
    assert capfd.readouterr() == ("", "")


def test_a_second_start_needs_neither_tfds_nor_the_source(root, source, files, monkeypatch):
    first = load(root, source)
    with monkeypatch.context() as patch:
        patch.setattr(builders, "open_records", lambda *args: 1 / 0)
        patch.setattr(builders, "write_examples", lambda *args: 1 / 0)
        again = load(root)
    check(again, files)
    assert again.notes == first.notes
    for split in FLICKR8K_LISTS:
        assert again.splits[split].captions == first.splits[split].captions
        assert again.splits[split].images.digest == first.splits[split].images.digest


def test_start_up_imports_neither_tfds_nor_pillow(root):
    program = f"""
import sys
from pb_jax.data import load_captions
load_captions("shapes")
dataset = load_captions("flickr8k", data_dir={str(root)!r})
assert not {{"tensorflow_datasets", "array_record", "PIL", "tqdm", "sklearn"}} & sys.modules.keys()
assert dataset.train.images.read([0]).shape == (1, 8, 12, 3)
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


def test_what_is_at_rest_is_an_ordinary_tfds_dataset_of_the_original_bytes(root, files):
    builder: Any = tfds.builder_from_directory(root / "flickr8k" / "1.0.0")
    for split, names in FLICKR8K_LISTS.items():
        data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        assert [example["name"].decode() for example in data] == names
        assert [example["image"] for example in data] == [files.images[name] for name in names]
        texts = [[text.decode() for text in example["captions"]] for example in data]
        assert texts == [files.captions[name] for name in names]
    assert builder.info.metadata["notes"][0].startswith("1 image with fewer than five captions")


def test_reading_any_few_in_any_order_and_size(root, files):
    images = load(root).splits["train"].images
    batch = images.read(np.array([2, 0, 2]), 16)
    assert batch.shape == (3, 16, 16, 3)
    assert batch.dtype == np.uint8
    for index, name in enumerate(["c.jpg", "a.jpg", "c.jpg"]):
        np.testing.assert_array_equal(batch[index], resize(decode(files.images[name]), 16))
    assert images.read([], 16).shape == (0, 16, 16, 3)
    with pytest.raises(ValueError, match="size must be given: the pictures differ in size"):
        images.read([0, 1])
    with pytest.raises(IndexError, match="indices must be 0 to 2"):
        images.read([3])


def test_the_digest_is_that_of_the_content_in_order(root, tmp_path, files):
    images = load(root).splits["train"].images
    assert len({images.digest, images.first(2).digest, images.first(1).digest}) == 3
    assert images.first(None).digest == images.digest
    assert images.first(2).names == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(images.first(2).read([1], 9), images.read([1], 9))
    files.images["a.jpg"] = jpeg(77)
    other = load(tmp_path / "other", files.write(tmp_path / "changed")).splits
    assert other["train"].images.digest != images.digest
    assert other["test"].images.digest == load(root).splits["test"].images.digest
    expected = "\n".join(
        hashlib.sha256(files.images[name]).hexdigest() for name in FLICKR8K_LISTS["train"]
    )
    assert other["train"].images.digest == hashlib.sha256(expected.encode()).hexdigest()


def test_load_captions(root, source, tmp_path):
    dataset = load_captions("flickr8k", data_dir=root, limit_train=2, limit_eval=1, progress=False)
    assert dataset.name == "flickr8k"
    assert dataset.train.images.names == ("a.jpg", "b.jpg")
    assert len(dataset.train.captions) == 2
    assert len(dataset.notes) == 4
    again = load_captions("flickr8k", data_dir=tmp_path / "r", source_dir=str(source))
    assert again.train.captions == load(root).splits["train"].captions
    assert again.notes == dataset.notes
    with pytest.raises(DataError, match="limit_train must be 1 to 3 for flickr8k; got 4"):
        load_captions("flickr8k", data_dir=root, limit_train=4)
    with pytest.raises(DataError, match="limit_eval must be 1 to 1 for flickr8k; got 0"):
        load_captions("flickr8k", data_dir=root, limit_eval=0)


def test_unknown_name():
    with pytest.raises(DataError, match="did you mean 'flickr8k'"):
        load_captions("flickr8")
    with pytest.raises(DataError, match="; known: flickr8k, shapes"):
        load_captions("mnist")


def test_without_files_the_message_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert f"flickr8k is not prepared in {tmp_path}, and cannot be downloaded" in message
    assert f"python -m pb_jax.data prepare flickr8k --source DIR --data-dir {tmp_path}\n" in message
    assert "--config.dataset.source_dir=DIR" in message
    assert "flickr8k/Flicker8k_Dataset/*.jpg" in message
    assert "Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt, Flickr_8k.testImages.txt" in message
    assert tree(tmp_path) == set()


def test_a_source_without_the_files_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no files of flickr8k"):
        load(tmp_path / "root", tmp_path / "empty")
    assert tree(tmp_path / "root") == set()


INDEX = Path("flickr8k/decoded/captions.json")
STALE_INDEX = {
    "lost": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 200),
    "no JSON": lambda path: path.write_bytes(b"\xff"),
    "a list": lambda path: path.write_text("[]"),
    "other format": lambda path: path.write_text(
        path.read_text().replace('"format": 1', '"format": 2')
    ),
    "other captions": lambda path: path.write_text(
        path.read_text().replace("Two dogs", "Two cats")
    ),
    "other order": lambda path: swap(path),
    "fewer parts": lambda path: path.write_text('{"format": 1, "splits": {"train": [["a.jpg"]]}}'),
}


def swap(path: Path) -> None:
    index = json.loads(path.read_text())
    index["splits"]["train"].reverse()
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("damage", STALE_INDEX.values(), ids=STALE_INDEX.keys())
def test_a_bad_index_is_made_again(root, files, monkeypatch, damage):
    before = (root / INDEX).read_text()
    damage(root / INDEX)
    monkeypatch.setattr(builders, "write_examples", lambda *args: 1 / 0)
    check(load(root), files)
    assert (root / INDEX).read_text() == before
    assert tree(root) == PREPARED


def test_an_index_that_cannot_be_written_is_done_without(root, files, monkeypatch, capsys):
    (root / INDEX).unlink()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(caption_preparation, "write_json", refuse)
    prepared = caption_preparation.load(FLICKR8K, root, progress=Progress(enabled=True))
    check(prepared, files)
    assert "Permission denied" in capsys.readouterr().err


RECORDS = "flickr8k-train.array_record-00000-of-00001"


def other_records(folder: Path) -> None:
    """Another valid TFDS dataset under the old metadata."""
    files = Flickr8kFiles()
    files.images["b.jpg"] = jpeg(55)
    source = files.write(folder.parent / "other_source")
    load(folder.parent / "other", source)
    (folder.parent / "other" / "flickr8k" / "1.0.0" / RECORDS).replace(folder / RECORDS)


DAMAGE = {
    "records cut": lambda folder: os.truncate(folder / RECORDS, 70_000),
    "records lost": lambda folder: (folder / RECORDS).unlink(),
    "info damaged": lambda folder: (folder / "dataset_info.json").write_text("{"),
    "other content": other_records,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_dataset_is_named_when_it_is_read(root, damage):
    """The index is whole, so that it comes out with the pictures; without the index, at once."""
    folder = root / "flickr8k" / "1.0.0"
    damage(folder)
    images = load(root).splits["train"].images
    with pytest.raises(DataError, match=r"is damaged .*delete this folder") as caught:
        images.read([1], 8)
    assert str(folder) in str(caught.value)
    (root / INDEX).unlink()
    with pytest.raises(DataError, match=r"is damaged .*delete this folder"):
        load(root)


def test_a_folder_that_another_program_wrote_is_left_alone(tmp_path, source):
    folder = tmp_path / "root" / "flickr8k" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"1\.0\.0: was not written by pb_jax"):
        load(tmp_path / "root", source)
    assert [path.name for path in folder.iterdir()] == ["dataset_info.json"]


def test_a_picture_that_changes_while_it_is_prepared_leaves_nothing(tmp_path, source, monkeypatch):
    write = builders.write_examples

    def change_and_write(*args):
        (source / "flickr8k" / "Flicker8k_Dataset" / "b.jpg").write_bytes(jpeg(8))
        write(*args)

    monkeypatch.setattr(builders, "write_examples", change_and_write)
    with pytest.raises(DataError, match=r"b\.jpg: changed while it was being read"):
        load(tmp_path / "root", source)
    assert tree(tmp_path / "root") == set()


@pytest.mark.parametrize("limit", [200, 2_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, source, limit):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"could not be written|cannot prepare flickr8k"):
            load(tmp_path / "root", source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path / "root") == set()


PROGRAM = """
import os, signal, sys
from pathlib import Path
from pb_jax.data import at_rest, builders, caption_preparation, flickr8k
from pb_jax.data.progress import Progress
from pb_jax.data.specs import FLICKR8K

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

{setup} = die
caption_preparation.load(
    FLICKR8K, Path(sys.argv[1]), source_dir=Path(sys.argv[2]), progress=Progress(True)
)
"""


@pytest.mark.parametrize("setup", ["flickr8k.load_picture", "at_rest._publish"])
def test_after_a_kill_the_next_start_recovers(tmp_path, source, files, setup):
    root = tmp_path / "root"
    program = textwrap.dedent(PROGRAM).replace("{setup}", setup)
    process = subprocess.run(
        [sys.executable, "-c", program, str(root), str(source)],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    assert tree(root)  # something was left
    assert not at_rest.is_prepared(FLICKR8K, root)
    check(load(root, source), files)
    assert tree(root) == PREPARED


def test_notes_are_said_while_preparing(tmp_path, source, capsys):
    progress = Progress(enabled=True)
    prepared = caption_preparation.load(
        FLICKR8K, tmp_path / "root", source_dir=source, progress=progress
    )
    said = capsys.readouterr().err.splitlines()
    assert [f"note: {note}" for note in prepared.notes] == [
        line for line in said if line.startswith("note: ")
    ]


def test_the_published_sizes_are_no_note(tmp_path, source):
    spec = dataclasses.replace(FLICKR8K, sizes={"train": 3, "validation": 1, "test": 1})
    prepared = caption_preparation.load(spec, tmp_path / "r", source_dir=source, progress=SILENT)
    assert len(prepared.notes) == 1


def test_grey_photographs_are_read_in_colour(tmp_path, files):
    buffer = io.BytesIO()
    Image.new("L", (10, 10), 77).save(buffer, "jpeg")
    files.images["a.jpg"] = buffer.getvalue()
    train = load(tmp_path / "root", files.write(tmp_path / "source")).splits["train"]
    assert (train.images.read([0]) == 77).all()

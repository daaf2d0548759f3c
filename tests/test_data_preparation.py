import dataclasses
import errno
import hashlib
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

from pb_jax.data import DataError, at_rest, builders, cache, download, preparation, sources
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Download
from tests.data_files import (
    TINY_CIFAR10,
    TINY_MNIST,
    assert_same,
    cifar_archive,
    random_splits,
    tree,
    write_cifar,
    write_idx,
)
from tests.data_server import serving

SILENT = Progress(enabled=False)
GREY = random_splits(TINY_MNIST)
PREPARED = {
    *(f"mnist/decoded/{s}_{p}.npy" for s in ("train", "test") for p in ("images", "labels")),
    "mnist/decoded/index.json",
    *(f"mnist/1.0.0/mnist-{s}.array_record-00000-of-00001" for s in ("train", "test")),
    *(f"mnist/1.0.0/{name}.json" for name in ("dataset_info", "features", "metadata")),
    "mnist/1.0.0/label.labels.txt",
}


def prepare(root: Path, source: Path | None = None, spec=TINY_MNIST, **kwargs):
    return preparation.splits(spec, root, source_dir=source, progress=SILENT, **kwargs)


@pytest.fixture
def source(tmp_path) -> Path:
    write_idx(tmp_path / "source" / "mnist", GREY)
    return tmp_path / "source"


@pytest.fixture
def root(tmp_path, source) -> Path:
    """A root folder with TINY_MNIST prepared."""
    prepare(tmp_path / "root", source)
    return tmp_path / "root"


def forbid(monkeypatch, *names: str) -> None:
    def fail(*args, **kwargs):
        raise AssertionError("must not be called")

    for name in names:
        monkeypatch.setattr(builders, name, fail)


def test_prepares_and_returns_the_content(tmp_path, source, capfd):
    assert_same(prepare(tmp_path / "root", source), GREY)
    assert tree(tmp_path / "root") == PREPARED
    assert capfd.readouterr() == ("", "")


def test_colour_images_survive(tmp_path):
    splits = random_splits(TINY_CIFAR10)
    write_cifar(tmp_path / "source", splits, "py")
    assert_same(prepare(tmp_path / "root", tmp_path / "source", TINY_CIFAR10), splits)


def test_what_is_at_rest_is_an_ordinary_tfds_dataset_in_the_original_order(root):
    builder: Any = tfds.builder_from_directory(root / "mnist" / "1.0.0")
    assert builder.info.features["label"].names == [str(digit) for digit in range(10)]
    for name, split in GREY.items():
        source = builder.as_data_source(split=name, decoders={"image": tfds.decode.SkipDecoding()})
        assert [example["label"] for example in source] == split.labels.tolist()
        assert all(example["image"].startswith(b"\x89PNG") for example in source)


def test_a_second_start_decodes_nothing_and_needs_no_source(root, monkeypatch):
    forbid(monkeypatch, "read", "write")
    splits = prepare(root)
    assert_same(splits, GREY)
    assert isinstance(splits["train"].images, np.memmap)


DAMAGE = {
    "cut short": lambda folder: os.truncate(folder / "train_images.npy", 5000),
    "index lost": lambda folder: (folder / "index.json").unlink(),
    "of other content": lambda folder: cache.write(folder, GREY, {"train": "0", "test": "0"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_bad_cache_is_made_again_from_the_tfds_dataset(root, monkeypatch, damage):
    damage(root / "mnist" / "decoded")
    forbid(monkeypatch, "write")
    assert_same(prepare(root), GREY)
    assert tree(root) == PREPARED
    forbid(monkeypatch, "read")
    assert_same(prepare(root), GREY)


def test_a_cache_that_cannot_be_written_is_done_without(root, monkeypatch, capsys):
    (root / "mnist" / "decoded" / "index.json").unlink()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "write", refuse)
    splits = preparation.splits(TINY_MNIST, root, progress=Progress(enabled=True))
    assert_same(splits, GREY)
    assert "Permission denied; decoding mnist into memory" in capsys.readouterr().err


def _change_a_label(folder: Path) -> None:
    """Another valid TFDS dataset under the old metadata."""
    metadata = (folder / "metadata.json").read_bytes()
    other = random_splits(TINY_MNIST, seed=1)
    builders.write(TINY_MNIST, other, folder.parent / "other", SILENT)
    for path in (folder.parent / "other" / "mnist" / "1.0.0").iterdir():
        path.rename(folder / path.name)
    (folder / "metadata.json").write_bytes(metadata)


TFDS_DAMAGE = {
    "records cut": lambda folder: os.truncate(
        folder / "mnist-train.array_record-00000-of-00001", 70_000
    ),
    "records lost": lambda folder: (folder / "mnist-test.array_record-00000-of-00001").unlink(),
    "info damaged": lambda folder: (folder / "dataset_info.json").write_text("{"),
    "other content": _change_a_label,
}


@pytest.mark.parametrize("damage", TFDS_DAMAGE.values(), ids=TFDS_DAMAGE.keys())
def test_a_damaged_tfds_dataset_is_named(root, damage):
    folder = root / "mnist" / "1.0.0"
    (root / "mnist" / "decoded" / "index.json").unlink()
    damage(folder)
    with pytest.raises(DataError, match=r"is damaged .*delete this folder") as caught:
        prepare(root)
    assert str(folder) in str(caught.value)


def test_a_folder_that_another_program_wrote_is_left_alone(tmp_path, source):
    folder = tmp_path / "root" / "mnist" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"1\.0\.0: was not written by pb_jax"):
        prepare(tmp_path / "root", source)
    assert [path.name for path in folder.iterdir()] == ["dataset_info.json"]


def test_a_damaged_source_leaves_nothing(tmp_path, source):
    path = source / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: is cut short"):
        prepare(tmp_path / "root", source)
    assert tree(tmp_path / "root") == set()


@pytest.mark.parametrize("module_and_name", [(builders, "read"), (cache, "write")])
def test_an_interruption_leaves_nothing(tmp_path, source, monkeypatch, module_and_name):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*module_and_name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "root", source)
    assert tree(tmp_path / "root") == set()
    assert_same(prepare(tmp_path / "root", source), GREY)


@pytest.mark.parametrize("limit", [2_000, 40_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, source, limit):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"mnist could not be written|cannot prepare mnist"):
            prepare(tmp_path / "root", source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path / "root") == set()


def test_an_unwritable_root_is_named(tmp_path, source):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/mnist: Not a directory; cannot prepare mnist"):
        prepare(tmp_path / "file", source)


def downloadable(spec, files: dict[str, bytes]):
    return dataclasses.replace(
        spec,
        downloads=tuple(
            Download(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        ),
        system_dirs=(),
    )


def test_downloads_the_archive(tmp_path, monkeypatch):
    splits = random_splits(TINY_CIFAR10)
    files = {"cifar-10-binary.tar.gz": cifar_archive(splits, "bin")}
    spec = downloadable(TINY_CIFAR10, files)
    write = builders.write

    def check_and_write(*args):
        assert not list(tmp_path.rglob("*.tar.gz"))  # its room is free again
        write(*args)

    monkeypatch.setattr(builders, "write", check_and_write)
    with serving(files) as server:
        content = prepare(tmp_path, spec=spec, base_url=f"{server.url}/right")
        assert_same(content, splits)
        assert_same(prepare(tmp_path, spec=spec, base_url=f"{server.url}/right"), splits)
    assert server.requests == ["/right/cifar-10-binary.tar.gz"]
    assert {path.split("/")[1] for path in tree(tmp_path)} == {"1.0.0", "decoded"}


def test_downloads_the_four_files(tmp_path, source):
    files = {path.name: path.read_bytes() for path in sorted((source / "mnist").iterdir())}
    spec = downloadable(TINY_MNIST, files)
    with serving(files) as server:
        spec = dataclasses.replace(spec, base_urls=(f"{server.url}/right",))
        assert_same(prepare(tmp_path / "root", spec=spec), GREY)
    assert tree(tmp_path / "root") == PREPARED


@pytest.mark.parametrize("how", ["wrong", "cut", "missing"])
def test_a_failed_download_says_what_to_put_where_and_leaves_nothing(tmp_path, how):
    files = {"cifar-10-binary.tar.gz": b"content" * 100}
    spec = downloadable(TINY_CIFAR10, files)
    with serving(files) as server:
        url = f"{server.url}/{how}"
        with pytest.raises(download.DownloadError) as caught:
            prepare(tmp_path, spec=spec, base_url=url)
    message = str(caught.value)
    assert f"{url}/cifar-10-binary.tar.gz" in message
    assert f"python -m pb_jax.data prepare cifar10 --source DIR --data-dir {tmp_path}\n" in message
    assert sources.describe(TINY_CIFAR10) in message
    assert tree(tmp_path) == set()


def test_files_that_a_system_package_installed_are_used(tmp_path, source):
    spec = dataclasses.replace(
        TINY_MNIST, base_urls=("http://never.invalid/",), system_dirs=("/gone", str(source))
    )
    assert_same(prepare(tmp_path / "root", spec=spec), GREY)


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from pb_jax.data import at_rest, builders, cache, preparation
from pb_jax.data.progress import Progress
from tests.data_files import TINY_MNIST

def killing(module, name, after):
    original = getattr(module, name)
    def call(*args, **kwargs):
        if after:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, call)

def rename_once(path, target, rename=Path.rename):
    rename(path, target)
    if Path(target).name == "decoded":
        os.kill(os.getpid(), signal.SIGKILL)

def write_slowly(*args, write=builders.write):
    time.sleep(1)
    write(*args)

{setup}
preparation.splits(
    TINY_MNIST, Path(sys.argv[1]), source_dir=Path(sys.argv[2]), progress=Progress(True)
)
"""


def start(root: Path, source: Path, setup: str = "") -> subprocess.Popen:
    program = textwrap.dedent(PROGRAM).replace("{setup}", setup)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, str(root), str(source)],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param("killing(builders, '_encode', after=True)", id="while TFDS writes"),
        pytest.param("killing(builders, 'write', after=True)", id="before the cache"),
        pytest.param("killing(at_rest, '_publish', after=False)", id="before the move"),
        pytest.param("Path.rename = rename_once", id="between the moves"),
    ],
)
def test_after_a_kill_the_next_start_recovers(tmp_path, source, setup):
    root = tmp_path / "root"
    process = start(root, source, setup)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert tree(root)  # something was left
    assert not at_rest.is_prepared(TINY_MNIST, root)
    assert_same(prepare(root, source), GREY)
    assert tree(root) == PREPARED


def test_two_processes_at_once(tmp_path, source):
    setup = "builders.write = write_slowly"
    processes = [start(tmp_path / "root", source, setup) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum("writing mnist train" in text for text in errors) == 1
    assert sum("decoding mnist train" in text for text in errors) == 1
    assert tree(tmp_path / "root") == PREPARED
    assert_same(prepare(tmp_path / "root"), GREY)


def test_a_file_system_without_locks_is_used_without(tmp_path, source, monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    progress = Progress(enabled=True)
    splits = preparation.splits(TINY_MNIST, tmp_path / "r", source_dir=source, progress=progress)
    assert_same(splits, GREY)
    assert "No locks available; let only one process prepare" in capsys.readouterr().err


def test_other_content_than_the_published_is_noted(tmp_path, source, capsys, monkeypatch):
    progress = Progress(enabled=True)
    preparation.splits(TINY_MNIST, tmp_path / "a", source_dir=source, progress=progress)
    assert "this is not the published content of mnist" in capsys.readouterr().err
    monkeypatch.setattr(sources, "published_name", lambda splits: "mnist")
    preparation.splits(TINY_MNIST, tmp_path / "b", source_dir=source, progress=progress)
    assert "note" not in capsys.readouterr().err

import subprocess
import sys

import pytest

from pb_jax.data import preparation, specs
from pb_jax.data.__main__ import main
from tests.data_files import TINY_MNIST, Flickr8kFiles, random_splits, write_idx


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setitem(specs.DATASETS, "mnist", TINY_MNIST)
    write_idx(tmp_path / "source" / "mnist", random_splits(TINY_MNIST))
    return ["--source", str(tmp_path / "source"), "--data-dir", str(tmp_path / "root")]


def test_prepare_says_what_it_did_and_where(folders, tmp_path, capsys):
    assert main(["prepare", "mnist", "digits", *folders]) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "root" / "mnist" / "1.0.0"
    assert f"mnist: 20 train + 6 test images, prepared in {folder} (0 MiB in all)\n" in out
    assert "digits: nothing to prepare, it comes with scikit-learn\n" in out
    assert err.splitlines() == [
        f"reading mnist from {tmp_path / 'source'}",
        "note: this is not the published content of mnist",
        "writing mnist train",
        "writing mnist test",
        "decoding mnist train",
        "decoding mnist test",
    ]
    assert main(["prepare", "mnist", "--data-dir", str(tmp_path / "root")]) == 0
    out, err = capsys.readouterr()
    assert f"was prepared already in {folder}" in out
    assert err == ""


def test_prepare_captions(tmp_path, capsys):
    files = Flickr8kFiles()
    files.captions["lost.jpg"] = ["a dog"]
    source, root = files.write(tmp_path / "source"), tmp_path / "root"
    assert main(["prepare", "flickr8k", "--source", str(source), "--data-dir", str(root)]) == 0
    out, err = capsys.readouterr()
    state = f"in {root / 'flickr8k' / '1.0.0'} (0 MiB in all)\n"
    counts = "flickr8k: 3 train + 1 validation + 1 test images, "
    assert out == f"{counts}prepared {state}"
    notes = [
        "note: 1 captioned name without an image file (lost.jpg): 1 caption left out",
        "note: train holds 3 images, the published one 6,000",
        "note: validation holds 1 image, the published one 1,000",
        "note: test holds 1 image, the published one 1,000",
    ]
    assert err.splitlines() == [
        f"reading flickr8k from {source}",
        "checking the pictures of flickr8k",
        *notes,
        *(f"writing flickr8k {split}" for split in ("train", "validation", "test")),
        *(f"indexing flickr8k {split}" for split in ("train", "validation", "test")),
    ]
    assert main(["prepare", "flickr8k", "shapes", "--data-dir", str(root)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{counts}was prepared already {state}".rstrip(),
        *notes,
        "shapes: nothing to prepare, it is rendered when it is loaded",
    ]
    assert err == ""


def test_list(folders, tmp_path, capsys):
    main(["prepare", "mnist", *folders])
    capsys.readouterr()
    assert main(["list", "--data-dir", str(tmp_path / "root")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["NAME", "IMAGE", "TRAIN", "VALIDATION", "TEST", "HOLDS", "PREPARED"],
        ["mnist", "28x28x1", "20", "-", "6", "10", "classes", str(tmp_path / "root/mnist/1.0.0")],
        ["fashion_mnist", "28x28x1", "60,000", "-", "10,000", "10", "classes", "no"],
        ["cifar10", "32x32x3", "50,000", "-", "10,000", "10", "classes", "no"],
        ["digits", "28x28x1", "1,437", "-", "360", "10", "classes", "built", "in"],
        ["flickr8k", "various", "6,000", "1,000", "1,000", "captions", "no"],
        ["shapes", "48x48x3", "3,000", "300", "300", "captions", "built", "in"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "mnst"], "error: unknown dataset 'mnst'; did you mean 'mnist'?"),
        (["prepare", "mnist", "--source", "/gone"], "error: /gone: is no folder"),
        (
            ["prepare", "mnist", "--base-url", "http://127.0.0.1:9/"],
            "error: mnist is not prepared in ",
        ),
        (["prepare", "flickr8k"], "cannot be downloaded"),
        (
            ["prepare", "flickr8k", "--base-url", "http://127.0.0.1:9/"],
            "error: flickr8k cannot be downloaded, so --base-url is of no use for it",
        ),
    ],
)
def test_errors_of_the_user(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_all_names_are_checked_before_any_work(folders, tmp_path, capsys):
    assert main(["prepare", "mnist", "nonsense", *folders]) == 2
    assert not (tmp_path / "root").exists()


def test_interruption(folders, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "splits", interrupt)
    assert main(["prepare", "mnist", *folders]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_as_a_program():
    command = [sys.executable, "-W", "error", "-m", "pb_jax.data", "prepare", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    for option in ("NAME", "--source", "--data-dir", "--base-url", "cifar10"):
        assert option in result.stdout
    failed = subprocess.run(
        [*command[:-1], "x"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: unknown dataset 'x'")

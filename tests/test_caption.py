"""caption.py on a small captioner that has learnt nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caption
import train
from pb_jax import training
from pb_jax.data import Vocabulary
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.modules import functional

PROGRAM = Path(caption.__file__)
WORDS = tuple(f"word{i}" for i in range(20))
CONFIG = {
    "model": {"name": training.CAPTIONER},
    "encoder": {"name": "small"},
    "dataset": {"name": "shapes"},
    "captioner": {"hidden": 8, "embedding": 8, "attention": 8},
    "generation": {"max_length": 6},
    "optimizer": {"name": "adam"},
    "epochs": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder, as train.py leaves it, with an untrained model."""
    folder = tmp_path_factory.mktemp("runs") / "captioner"
    folder.mkdir()
    config = training.resolve(CONFIG)
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = Vocabulary(WORDS)
    vocabulary.save(folder / training.VOCABULARY)
    _, params, model_state, _ = functional(train.captioner(config)[1](len(vocabulary)))
    for name in ("initial_cell.kernel", "output.kernel"):
        params[name] *= 30  # else all pictures have the same caption
    checkpoints = Checkpoints(folder / "checkpoints", "val_bleu4")
    checkpoints.save({"params": params, "model_state": model_state}, {"epoch": 2, "val_bleu4": 0.1})
    checkpoints.close()
    (folder / "summary.json").write_text(summary(best_epoch=2))
    return folder


def summary(**changes):
    return json.dumps(dict.fromkeys(training.metrics.SUMMARY, 3) | changes)


def picture(path, seed=0, size=(60, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def write(*arguments):
    return caption.main(["caption.py", *map(str, arguments)])


def test_captions_and_figures(run, tmp_path, capsys):
    first = picture(tmp_path / "one.png", 1)
    second = picture(tmp_path / "two.jpg", 2, (30, 90))
    assert write("--workdir", run, first, second) == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert errors == ""
    assert [line.partition(": ")[0] for line in lines] == [first, second]
    for line in lines:
        words = line.partition(": ")[2].split()
        assert len(words) <= 6
        assert set(words) <= set(WORDS)
    figures = sorted((run / "figures").iterdir())
    assert [path.name for path in figures] == ["caption_one.png", "caption_two.png"]
    for path in figures:
        with Image.open(path) as image:
            assert image.width == 1000


def test_a_picture_has_its_caption_whatever_else_there_is(run, tmp_path, capsys):
    good = picture(tmp_path / "good.png", 3)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    half = tmp_path / "half.png"
    half.write_bytes(Path(good).read_bytes()[:900])
    bomb = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(bomb)
    wrong = [text, half, bomb, tmp_path / "absent.png", tmp_path]
    before = sorted(run.rglob("*"))
    assert write("--workdir", run, "--no-figure", *wrong, good) == 2
    output, errors = capsys.readouterr()
    assert output.startswith(f"{good}: ")
    assert output.count("\n") == 1
    reported = errors.splitlines()
    assert len(reported) == len(wrong)
    for line, path in zip(reported, wrong, strict=True):
        assert line.startswith("error: ")
        assert str(path) in line
    assert "10000 x 10000" in errors
    assert sorted(run.rglob("*")) == before


def test_the_describer_knows_words_and_where_it_looked(run):
    describer = caption.Describer(run, beam=1)
    size = describer.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    words, alphas = describer(image)
    assert words
    assert alphas.shape == (len(words), np.prod(describer.grid))
    np.testing.assert_allclose(alphas.sum(1), 1, rtol=1e-5)
    assert describer(image)[0] == words
    others = [describer(np.full((size, size, 3), value, np.uint8))[0] for value in (0, 255)]
    assert any(other != words for other in others)


def test_figures_of_pictures_with_one_name():
    images = [Path("a/dog.jpg"), Path("b/dog.png"), Path("dog.gif")]
    names = [path.name for path in caption.figure_paths(Path("figures"), images)]
    assert names == ["caption_dog.png", "caption_dog_2.png", "caption_dog_3.png"]


def changed(run, tmp_path, name, content):
    """The run's folder with another file in it (None: without the file)."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in run.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    if content is not None:
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "holds no run"),
        ("config.json", "{", "damaged"),
        ("config.json", "[]", "damaged"),
        ("config.json", '{"model": {"name": "lenet5"}}', "run of lenet5, which writes no captions"),
        ("summary.json", None, "not finished"),
        ("summary.json", summary(epochs=2), "not finished"),
        ("summary.json", "[]", "not finished"),
        ("summary.json", summary(best_epoch=1), "cannot be read"),
        (training.VOCABULARY, None, "no such file"),
    ],
)
def test_folders_that_hold_no_finished_captioner(run, tmp_path, capsys, name, content, message):
    folder = changed(run, tmp_path, name, content)
    assert write("--workdir", folder, "picture.png") == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "--workdir"),
        (["--workdir", "runs"], "IMAGE"),
        (["--workdir", "runs", "--beam", "0", "a.png"], "--beam must be 1 to 100"),
        (["--workdir", "runs", "--beam", "many", "a.png"], "--beam"),
        (["--workdir", "runs", "--bean", "2", "a.png"], "--bean"),
        (["--workdir", "absent", "a.png"], "absent holds no run"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    assert write(*arguments) == 2
    assert message in capsys.readouterr().err


def test_help_and_no_arguments():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python caption.py" in done.stdout
    assert write() == 2

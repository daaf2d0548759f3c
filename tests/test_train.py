import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from pb_jax.training import metrics, stored
from tests.tiny_training import lines, saved_epochs

ROOT = Path(__file__).parents[1]
DIGITS = "configs/digits_pb.py"
pytestmark = pytest.mark.filterwarnings(
    # ml_collections imports config files that way
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
SMALL = [
    "--config.epochs=3",
    "--config.batch_size=20",
    "--config.dataset.limit_train=100",
    "--config.dataset.limit_eval=50",
    "--config.freeze.rule=fixed_threshold",
    "--config.freeze.threshold=1.5",
    "--config.freeze.start_epoch=2",
]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(ROOT)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(workdir, *arguments, config=DIGITS):
    return train.main(["train.py", "--config", config, "--workdir", str(workdir), *arguments])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("small") / "run"
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert run(workdir, *SMALL) == 0
    finally:
        os.chdir(before)
    return workdir


def test_what_a_run_leaves(small):
    names = {path.name for path in small.iterdir() if not path.name.startswith(".")}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "figures"} <= names
    assert "mask_step_6.npz" in names
    assert "tensorboard" in names
    assert list((small / "figures").glob("*.png"))
    config = json.loads((small / "config.json").read_text())
    assert config["freeze"]["threshold"] == 1.5
    assert config["optimizer"]["b2"] == 0.999
    assert [line["epoch"] for line in lines(small)] == [1, 2, 3]
    assert lines(small)[-1]["frozen_fraction"] > 0
    assert 3 in saved_epochs(small)


def test_a_finished_run_says_so_and_shows_its_table(small, capsys):
    before = (small / "metrics.jsonl").read_text()
    assert run(small, *SMALL) == 0
    printed = capsys.readouterr().out
    assert "holds a finished run" in printed
    assert "final val accuracy" in printed
    assert re.search(
        r"^seconds of the epochs +[\d.]+ \(without compilation\)$", printed, re.MULTILINE
    )
    assert str(small / "summary.json") in printed
    assert (small / "metrics.jsonl").read_text() == before


def test_a_run_that_lost_its_summary_writes_it_again(small):
    summary = json.loads((small / "summary.json").read_text())
    (small / "summary.json").unlink()
    assert run(small, *SMALL) == 0
    assert json.loads((small / "summary.json").read_text()) == summary


def test_another_configuration_in_the_same_folder(small, capsys):
    assert run(small, *SMALL, "--config.seed=4", "--config.freeze.threshold=1.0") == 2
    error = capsys.readouterr().err
    assert "freeze.threshold: 1.5 there, 1.0 here" in error
    assert "seed: 0 there, 4 here" in error


def test_a_folder_where_nothing_was_trained_is_free(tmp_path, capsys):
    assert run(tmp_path, *SMALL, "--config.batch_size=999") == 2
    assert "batch_size=999 is more than the 100 training examples" in capsys.readouterr().err
    assert run(tmp_path, *SMALL, "--config.epochs=1") == 0


def test_weights_to_start_from(tmp_path):
    from flax import nnx

    import models

    weights = models.to_torch(models.create("lenet5", rngs=nnx.Rngs(7)))
    np.savez(tmp_path / "weights.npz", **weights)
    given = f"--config.model.weights={tmp_path / 'weights.npz'}"
    assert run(tmp_path / "one", *SMALL, "--config.epochs=1", given) == 0
    assert run(tmp_path / "other", *SMALL, "--config.epochs=1", given, "--config.seed=0") == 0
    assert lines(tmp_path / "one") == lines(tmp_path / "other")
    assert run(tmp_path / "fresh", *SMALL, "--config.epochs=1") == 0
    assert lines(tmp_path / "fresh") != lines(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.freeze.star_epoch=4"], "did you mean 'freeze.start_epoch'?"),
        (["--config.batch_size=foo"], "config.batch_size=foo"),
        (["--config.freeze.mode=foo"], "freeze.mode='foo' is not allowed: one of updates"),
        (["--config.model.name=lenet"], "unknown model.name 'lenet'; did you mean 'lenet5'?"),
        (["--config.dataset.name=digit"], "did you mean 'digits'?"),
        (["--config.model.name=vgg19"], "cannot take images of shape (28, 28, 1)"),
        (["--config.freeze.rule=random"], "rule 'random' needs freeze.frozen"),
        (["--config.freeze.granularity=row"], "freeze.granularity='row' is not allowed"),
        (["--config.optimizer.boundaries=(4,2)"], "optimizer.boundaries=(4, 2) is not allowed"),
        (["--config.model.weights=/nowhere.npz"], "/nowhere.npz"),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["stray"], "'stray' is no flag"),
    ],
)
def test_errors_are_short_and_say_what_to_do(tmp_path, capsys, arguments, message):
    assert run(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_no_config(capsys):
    assert train.main(["train.py"]) == 2
    assert "--config FILE; there are configs/captioner_pb.py" in capsys.readouterr().err
    assert train.main(["train.py", "--config=nowhere.py"]) == 2
    assert "there is no config file 'nowhere.py'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confg", "configs/digits_pb.py"], "unknown flag '--confg'; did you mean '--config'?"),
        (["-confg=configs/digits_pb.py"], "unknown flag '--confg'; did you mean '--config'?"),
        (["--workdir", "x", "--xyzzy"], "unknown flag '--xyzzy'; known: --config, --workdir"),
        (["mine.py"], "'mine.py' is no flag; did you mean --config mine.py?"),
        (["digits_pb"], "'digits_pb' is no flag; did you mean --config configs/digits_pb.py?"),
        (["--debug", "--workdir=x", "--config.epochs=1"], "say which experiment with --config"),
    ],
)
def test_a_config_that_was_meant(capsys, arguments, message):
    assert train.main(["train.py", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.epoch = 3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("c.epochs = nonsense", "NameError: name 'nonsense'"),
        ("c.epochs = ", "SyntaxError"),
        ("return 3", "get_config returns 3, no config"),
    ],
)
def test_errors_in_a_config_file(tmp_path, capsys, text, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from pb_jax.training import default_config\n"
        f"def get_config():\n    c = default_config()\n    {text}\n    return c\n"
    )
    assert run(tmp_path / "run", config=str(path)) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error
    assert len(error) < 300


def test_a_mask_after_the_end_is_said(tmp_path, capsys):
    assert run(tmp_path, *SMALL, "--config.epochs=1", "--config.freeze.start_epoch=4") == 0
    said = "nothing will be frozen: freeze.start_epoch=4 is after the last epoch\n"
    assert said in capsys.readouterr().out


def test_debug_shows_the_stack(tmp_path, capsys):
    assert run(tmp_path, "--config.epochs=0", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_names_every_key(capsys):
    from pb_jax.training import KEYS

    assert train.main(["train.py", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "usage: python train.py --config" in printed
    assert all(name in printed for name in KEYS)


def test_a_folder_in_use(tmp_path, capsys):
    from pb_jax.training import exclusive

    with exclusive(tmp_path):
        assert run(tmp_path, *SMALL) == 2
    assert "another process is training in" in capsys.readouterr().err


def test_divergence_has_its_own_status(tmp_path, capsys):
    rate = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30"]
    assert run(tmp_path, *SMALL, *rate) == 1
    assert "is not finite; no checkpoint had been written before" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(tmp_path, number, status):
    command = [sys.executable, "train.py", "--config", DIGITS, "--workdir", str(tmp_path)]
    command += [*SMALL, "--config.epochs=100000"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(metrics.read(tmp_path / "metrics.jsonl")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert "stopped; this resumes it:\n  python train.py --config" in error
    assert "Traceback" not in error
    assert stored.epochs(tmp_path / "checkpoints" / "interrupted")


@pytest.mark.slow
def test_on_several_devices_the_curve_is_that_of_one(tmp_path):
    """The flags that a user types; `tests/test_training_mesh.py` looks at what they do."""
    meshes = {"1x1": [], "8x1": ["--config.mesh.data=8"]}
    meshes["4x2"] = ["--config.mesh.data=4", "--config.mesh.fsdp=2"]
    for name, flags in meshes.items():
        assert run(tmp_path / name, *SMALL, "--config.batch_size=40", *flags) == 0
    one, *others = (metrics.read(tmp_path / name / "metrics.jsonl") for name in meshes)
    for records in others:
        for found, wanted in zip(records, one, strict=True):
            assert found["frozen_fraction"] == wanted["frozen_fraction"]
            for key in ("train_loss", "val_loss"):
                assert found[key] == pytest.approx(wanted[key], rel=1e-5)


@pytest.mark.slow
def test_the_quickstart(tmp_path):
    """The command of the README, as a user types it."""
    command = [sys.executable, "train.py", "--config", DIGITS, "--workdir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final_val_accuracy"] > 0.95
    assert 0.5 < summary["frozen_fraction"] < 0.99
    accuracy = f"{summary['final_val_accuracy']:.2%}".replace("%", " %")
    assert re.search(rf"^final val accuracy +{accuracy}$", done.stdout, re.MULTILINE)


CAPTIONER = [
    "--config.epochs=2",
    "--config.dataset.limit_train=40",
    "--config.dataset.limit_eval=12",
    "--config.captioner.hidden=16",
    "--config.captioner.embedding=8",
    "--config.captioner.attention=8",
    "--config.freeze.rule=quantile",
    "--config.freeze.frozen=0.6",
    "--config.freeze.start_epoch=2",
    "--config.generation.beam=2",
]


@pytest.mark.slow
def test_a_captioner_from_nothing_to_its_captions(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(workdir, *CAPTIONER, config="configs/shapes_captioner_pb.py") == 0
    printed = capsys.readouterr().out
    assert "40 train, 12 validation, 12 test pictures" in printed
    assert "test BLEU-1 to 4" in printed
    summary = json.loads((workdir / "summary.json").read_text())
    scores = {f"{split}_bleu{n}" for split in ("val", "test") for n in (1, 2, 3, 4)}
    assert scores <= summary.keys()
    assert summary["frozen_fraction"] == pytest.approx(0.6, abs=0.001)
    captions = json.loads((workdir / "test_captions.json").read_text())
    assert len(captions) == 12
    words = json.loads((workdir / "vocabulary.json").read_text())["words"]
    assert {word for caption in captions.values() for word in caption.split()} <= set(words)
    assert run(workdir, *CAPTIONER, config="configs/shapes_captioner_pb.py") == 0
    assert "holds a finished run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.dataset.name=mnist"], "unknown dataset.name 'mnist'"),
        (["--config.encoder.name=resnet"], "unknown encoder.name 'resnet'; did you mean"),
        (["--config.encoder.name=vgg19"], "encoder.weights"),
        (["--config.encoder.weights=x.npz"], "weights"),
        (["--config.batch_size=1000", *CAPTIONER], "more than the 200 training captions"),
    ],
)
def test_errors_of_captioners(tmp_path, capsys, arguments, message):
    assert run(tmp_path / "run", *arguments, config="configs/shapes_captioner_pb.py") == 2
    printed, errors = capsys.readouterr()
    assert message in errors
    assert "Traceback" not in errors
    # Names and weights of encoders are looked at before the data, which may take long.
    assert ("five captions each" in printed) == ("batch_size" in arguments[0])

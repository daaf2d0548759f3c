import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pb_jax.checkpoints import main
from pb_jax.training import stored
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.compact import megabytes
from tests.test_training_delta import bases, compact_state, dense_state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a full checkpoint, which is the best, and two deltas."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints", keep=5)
    states = [dense_state(), compact_state(1), compact_state(2, 1)]
    for epoch, (state, score) in enumerate(zip(states, (0.7, 0.9, 0.8), strict=True), 1):
        frozen = 0.0 if epoch == 1 else 0.8
        record = {"epoch": epoch, "val_accuracy": score, "frozen_fraction": frozen}
        checkpoints.save(state, record)
    checkpoints.close()
    config = {"model": {"name": "tiny"}, "dataset": {"name": "digits"}, "epochs": 3}
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "epoch"), [([], 2), (["--epoch", "last"], 3), (["--epoch", "1"], 1)]
)
def test_export_writes_full_weights(run, tmp_path, capsys, options, epoch):
    before, target = content(run), tmp_path / "out.safetensors"
    assert main(["export", str(run), str(target), *options]) == 0
    assert content(run) == before
    state = {1: dense_state(), 2: compact_state(1), 3: compact_state(2, 1)}[epoch]
    wanted = state.params | {"norm.mean": state.model_state["norm.mean"]}
    found = safetensors.numpy.load_file(target)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.asarray(array).tobytes()
    assert found["few"].dtype == jnp.bfloat16
    with safetensors.safe_open(target, "np") as opened:
        about = opened.metadata()
    assert about.keys() == {
        *("model", "dataset", "epoch", "score", "frozen_fraction", "record", "versions")
    }
    assert (about["model"], about["dataset"], about["epoch"]) == ("tiny", "digits", str(epoch))
    assert float(about["score"]) == {1: 0.7, 2: 0.9, 3: 0.8}[epoch]
    assert json.loads(about["frozen_fraction"]) == (0.0 if epoch == 1 else 0.8)
    assert json.loads(about["record"])["epoch"] == epoch
    assert "jax" in json.loads(about["versions"])
    out = capsys.readouterr().out
    assert f"{target}: epoch {epoch}, 78 numbers in 6 arrays\n" in out
    assert "left out, as no floating-point numbers: drop.key" in out


def test_without_the_configuration(run, tmp_path):
    (run / "config.json").unlink()
    target = tmp_path / "out.safetensors"
    assert main(["export", str(run), str(target)]) == 0
    with safetensors.safe_open(target, "np") as opened:
        assert not {"model", "dataset"} & opened.metadata().keys()


def test_show(run, capsys):
    before = content(run)
    assert main(["show", str(run)]) == 0
    assert content(run) == before
    lines = capsys.readouterr().out.splitlines()
    names = [
        stored.item(run / "checkpoints" / str(epoch), stored.DELTA)["base"]["file"]
        for epoch in (2, 3)
    ]
    assert lines[0].split() == ["epoch", "form", "score", "on", "disk", "base"]
    assert lines[1].split()[:3] == ["1", "full", "0.7000"]
    assert lines[2].endswith(f"{names[0]}, best")
    assert lines[3].split()[:3] == ["3", "delta", "0.8000"]
    assert lines[3].endswith(names[1])
    sizes = {path.name: path.stat().st_size for path in bases(run / "checkpoints")}
    assert lines[4:] == [f"base {name}: {megabytes(sizes[name])}" for name in sorted(names)]
    (run / "checkpoints" / "base" / names[1]).unlink()
    assert main(["show", str(run)]) == 0
    assert f"{names[1]} (missing)" in capsys.readouterr().out


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_wrong_folders(tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    for command in (["show"], ["export"]):
        rest = [target] if command == ["export"] else []
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "young" / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert "there is no folder" in fails(capsys, *command, tmp_path / "no", *rest)
        assert "holds no checkpoints; give" in fails(capsys, *command, tmp_path / "empty", *rest)
        assert "no checkpoint yet" in fails(capsys, *command, tmp_path / "young", *rest)
    assert not target.exists()


def test_a_damaged_record(run, tmp_path, capsys):
    (run / "checkpoints" / "3" / "record" / "metadata").write_text("[1]")
    (run / "checkpoints" / "3" / "files.json").unlink()
    said = fails(capsys, "export", run, tmp_path / "out.safetensors", "--epoch", "3")
    assert "3 cannot be read: holds no object" in said


def test_wrong_targets(run, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    target.write_text("mine")
    assert f"{target} exists" in fails(capsys, "export", run, target)
    assert target.read_text() == "mine"
    assert main(["export", str(run), str(target), "--force"]) == 0
    assert len(safetensors.numpy.load_file(target)) == 6
    assert "must end in .safetensors" in fails(capsys, "export", run, tmp_path / "out.npz")
    there = tmp_path / "no" / "out.safetensors"
    assert "there is no folder" in fails(capsys, "export", run, there)
    (tmp_path / "dir.safetensors").mkdir()
    said = fails(capsys, "export", run, tmp_path / "dir.safetensors", "--force")
    assert "exists" in said


def test_wrong_epochs(run, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    said = fails(capsys, "export", run, target, "--epoch", "7")
    assert "holds no checkpoint of epoch 7; it holds those of 1, 2, 3" in said
    with pytest.raises(SystemExit):
        main(["export", str(run), str(target), "--epoch", "worst"])
    assert "must be a number, best or last, got 'worst'" in capsys.readouterr().err


def test_damage(run, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    for base in bases(run / "checkpoints"):
        base.unlink()
    assert "is missing; put back" in fails(capsys, "export", run, target)
    assert main(["export", str(run), str(target), "--epoch", "1"]) == 0
    (run / "checkpoints" / "2" / "metrics" / "metrics").write_text("{")
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["2", "damaged", "nan"]
    assert lines[3].endswith("(missing), best")  # of those that are whole


def test_a_checkpoint_that_goes_while_it_is_read(run, tmp_path, capsys, monkeypatch):
    def gone(checkpoint, *_):
        shutil.rmtree(checkpoint)
        raise FileNotFoundError("state")

    monkeypatch.setattr(stored, "arrays", gone)
    said = fails(capsys, "export", run, tmp_path / "out.safetensors")
    assert "was removed while it was read, as training goes on; try again" in said


def test_safetensors_missing(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    said = fails(capsys, "export", run, tmp_path / "out.safetensors")
    assert "safetensors is not installed; pip install 'pb_jax[train]' brings it" in said


def test_help():
    command = [sys.executable, "-m", "pb_jax.checkpoints", "export", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert "--epoch N|best|last" in done.stdout

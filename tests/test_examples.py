"""What lies in examples/ runs, and freezes."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import models

FOLDER = Path(__file__).parents[1] / "examples"
QUICK, SLOW = ("linen_train_state",), ("optax_loop", "nnx_optimizer", "equinox_model")
LOOPS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
OTHERS = {"custom_rule", "find_threshold", "finetune_vgg19"}


def run(name):
    return runpy.run_module(f"examples.{name}")


@pytest.mark.parametrize("name", LOOPS)
def test_loops_learn_and_leave_frozen_weights_alone(name):
    found = run(name)
    leaves = [jax.tree.leaves(found[part]) for part in ("before", "after", "mask")]
    for before, after, mask in zip(*leaves, strict=True):
        np.testing.assert_array_equal(before[~mask], after[~mask])
        assert not mask.any() or (before[mask] != after[mask]).mean() > 0.9
    assert sum(mask.sum() for mask in leaves[2]) < 0.25 * sum(mask.size for mask in leaves[2])
    assert found["accuracy"] > 0.8


def test_the_plain_loop_is_as_short_as_it_says():
    lines = (FOLDER / "optax_loop.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 42


def test_custom_rules_freeze_what_they_say():
    masks = {name: jax.device_get(mask) for name, mask in run("custom_rule")["masks"].items()}
    shares = {
        name: 1 - np.concatenate([m["w"].ravel(), m["b"]]).mean() for name, m in masks.items()
    }
    assert shares["gradient"] == shares["saliency"] == pytest.approx(0.6)
    assert (masks["gradient"]["w"] != masks["saliency"]["w"]).any()
    assert masks["saliency, biases train"]["b"].all()
    channels = masks["saliency, whole channels"]["w"]
    assert (channels == channels[0]).all()
    assert 0 < channels[0].sum() < 5


@pytest.mark.slow
def test_a_threshold_is_found_and_drawn(tmp_path, capsys):
    path = tmp_path / "threshold.png"
    assert run("find_threshold")["main"](["--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "threshold 5." in capsys.readouterr().out
    assert run("find_threshold")["main"](["--output", str(tmp_path)]) == 2
    assert f"error: cannot write {tmp_path}: Is a directory" in capsys.readouterr().err


def test_a_figure_without_a_folder_is_refused_at_once(tmp_path, capsys):
    assert run("find_threshold")["main"](["--output", str(tmp_path / "nope/x.png")]) == 2
    assert capsys.readouterr() == ("", f"error: there is no folder {tmp_path}/nope\n")


@pytest.mark.slow
def test_vgg19_of_pytorch_is_fine_tuned(tmp_path, capsys):
    path = tmp_path / "vgg19.safetensors"
    save_file(models.to_torch(models.create("vgg19", rngs=nnx.Rngs(1))), path)
    main = run("finetune_vgg19")["main"]
    assert main(["--weights", str(path), "--steps", "2", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    assert "optimizer state: 66.6 MB, of all weights 240.5 MB" in out
    assert "80.00%" in out.splitlines()[-4]
    assert "step 2 of 2: loss" in out


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*QUICK, *SLOW} | OTHERS

import ast
import importlib
from pathlib import Path

import pytest

import models
import train
from pb_jax.training import CAPTIONER, Plateau, make_freezing, make_optimizer, resolve

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*_pb.py"))
CAPTIONERS = ["captioner_pb", "shapes_captioner_pb"]


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def test_all_networks_and_the_quickstart_are_there():
    assert {f"{model}_pb" for model in models.NAMES} | {"digits_pb", *CAPTIONERS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_whole_locked_and_described(name):
    config = config_of(name)
    assert config.is_locked
    resolved = resolve(config)
    train.check_names(resolved)
    _, optimizer = make_optimizer(resolved, steps_per_epoch=10)
    freezing = make_freezing(resolved, steps_per_epoch=10)
    assert freezing is not None
    assert freezing.around(optimizer).init({}) is not None
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert text is not None
    assert f"python train.py --config configs/{name}.py" in text
    assert "Hardware: " in text


@pytest.mark.parametrize("name", [f"{model}_pb" for model in models.NAMES])
def test_the_papers_settings(name):
    config = config_of(name)
    assert config.epochs == 110
    assert config.batch_size == 100
    assert config.optimizer.name == "amsgrad_torch"
    assert config.optimizer.learning_rate == 1e-3
    assert tuple(config.optimizer.boundaries) == (40, 80)
    assert config.optimizer.decay == 0.1
    assert config.freeze.rule == "kde_otsu"
    assert config.freeze.start_epoch == 3
    assert config.freeze.mode == "updates"
    assert config.dataset.name == ("mnist" if name == "lenet5_pb" else "cifar10")


@pytest.mark.parametrize("name", CAPTIONERS)
def test_the_papers_settings_of_the_captioner(name):
    resolved = resolve(config_of(name))
    assert resolved["model"]["name"] == CAPTIONER
    assert resolved["batch_size"] == 60
    assert (resolved["freeze"]["rule"], resolved["freeze"]["start_epoch"]) == ("kde_otsu", 3)
    assert resolved["generation"]["beam"] == 3
    rate, _ = make_optimizer(resolved, steps_per_epoch=10)
    assert isinstance(rate, Plateau)
    assert (rate.decay, rate.patience, rate.stop) == (0.8, 3, 10)
    if name == "captioner_pb":
        assert resolved["epochs"] == 15
        assert rate.learning_rate == 5e-4
        assert resolved["dataset"]["name"] == "flickr8k"
        sizes = [resolved["captioner"][key] for key in ("hidden", "embedding", "attention")]
        assert sizes == [512, 512, 512]


def test_another_rule_needs_nothing_unset():
    """No config sets a parameter of its rule, which would be in another rule's way."""
    for name in NAMES:
        for rule, frozen in (("none", None), ("random", 0.5), ("mean_threshold", None)):
            config = config_of(name)
            config.freeze.rule = rule
            config.freeze.frozen = frozen
            assert resolve(config)["freeze"]["rule"] == rule

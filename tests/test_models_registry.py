from unittest import mock

import jax.numpy as jnp
import pytest
from flax import nnx

import models
import train
from models import registry
from models.lenet5 import LeNet5
from pb_jax.errors import UserError


@pytest.fixture(autouse=True)
def _networks_as_before():
    with mock.patch.dict(registry._NETWORKS):
        yield


def test_a_class_registered_by_a_decorator_is_created():
    @models.register("mine")
    class Mine(LeNet5):
        pass

    assert isinstance(models.create("mine", 3, rngs=nnx.Rngs(0)), Mine)
    assert "mine" in models.NAMES


def test_a_function_gets_the_arguments_of_create():
    given = {}

    def build(num_classes, *, rngs, dtype, precision):
        given.update(dtype=dtype, precision=precision)
        return LeNet5(num_classes, rngs=rngs, dtype=dtype, precision=precision)

    assert models.register("mine", build) is build
    model = models.create("mine", 3, rngs=nnx.Rngs(0), dtype="bfloat16", precision="highest")
    assert model(jnp.zeros((1, 28, 28, 1))).shape == (1, 3)
    assert given == {"dtype": jnp.bfloat16, "precision": "highest"}


def test_train_knows_it_by_name():
    config = {"model": {"name": "mine"}, "dataset": {"name": "digits"}}
    with pytest.raises(UserError, match=r"unknown model.name 'mine'"):
        train.check_names(config)
    models.register("mine", LeNet5)
    train.check_names(config)


def test_a_name_is_given_once():
    models.register("mine", LeNet5)
    for name in ("mine", "vgg19", "captioner"):
        with pytest.raises(ValueError, match=f"not be that of another network, got '{name}'"):
            models.register(name, LeNet5)
        with pytest.raises(ValueError, match="there are lenet5, vgg19, resnet110, densenet121"):
            models.register(name)


@pytest.mark.parametrize(
    ("name", "build", "error", "message"),
    [
        ("", LeNet5, ValueError, "name must be a string that is not empty, got ''"),
        (7, LeNet5, ValueError, "name must be a string that is not empty, got 7"),
        ("mine", 7, TypeError, "build must be a class or a function, got 7"),
    ],
)
def test_wrong_arguments(name, build, error, message):
    with pytest.raises(error, match=message):
        models.register(name, build)
    assert "mine" not in models.NAMES

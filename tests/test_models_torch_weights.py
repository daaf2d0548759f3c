import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from pb_jax.errors import UserError

SAFETENSORS = pytest.importorskip("safetensors.numpy")


@functools.cache
def named_by_torch(name):
    return models.to_torch(models.create(name, rngs=nnx.Rngs(0)))


def lenet(seed=0):
    return models.create("lenet5", rngs=nnx.Rngs(seed))


def weights(seed=1):
    return models.to_torch(lenet(seed))


def assert_same(model, other):
    for name, value in models.to_torch(model).items():
        np.testing.assert_array_equal(value, models.to_torch(other)[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vgg19", {"features.0.weight": (64, 3, 3, 3), "features.50.running_var": (512,)}),
        ("vgg19", {"features.0.bias": (64,), "classifier.weight": (10, 512)}),
        ("resnet110", {"layer2.0.conv1.weight": (32, 16, 3, 3), "linear.weight": (10, 64)}),
        ("resnet110", {"layer1.17.bn2.running_mean": (16,), "bn1.weight": (16,)}),
        ("densenet121", {"dense1.0.conv1.weight": (48, 24, 1, 1), "bn.weight": (384,)}),
        ("densenet121", {"trans3.conv.weight": (192, 384, 1, 1), "dense4.15.bn1.bias": (372,)}),
    ],
)
def test_names_and_layouts_of_the_pytorch_models(name, wanted):
    named = named_by_torch(name)
    assert wanted == {key: named[key].shape for key in wanted}


def test_flattening_order():
    """PyTorch flattens (C, H, W): a dense weight that reads one value must still read it."""
    named = weights()
    named["fc1.weight"] = np.zeros((120, 512), np.float32)
    named["fc1.weight"][0, np.ravel_multi_index((7, 2, 3), (32, 4, 4))] = 1.0
    model = lenet()
    models.load_torch(model, named)
    image = jnp.zeros((4, 4, 32)).at[2, 3, 7].set(5.0)
    np.testing.assert_allclose(
        (image.reshape(-1) @ model.fc1.kernel[...])[:2], [5.0, 0.0], atol=1e-6
    )


@pytest.mark.parametrize("kind", ["mapping", "npz", "safetensors", "module"])
def test_every_source(kind, tmp_path):
    named, source = weights(), None
    if kind == "mapping":
        source = named | {"conv1.num_batches_tracked": np.int64(3)}
    elif kind == "module":
        source = {f"module.{name}": value for name, value in named.items()}
    elif kind == "npz":
        source = tmp_path / "weights.npz"
        np.savez(source, **named)
    else:
        source = str(tmp_path / "weights.safetensors")
        SAFETENSORS.save_file({k: np.ascontiguousarray(v) for k, v in named.items()}, source)
    model = lenet()
    models.load_torch(model, source)
    assert_same(model, lenet(1))


def test_running_statistics_come_along():
    model = models.create("densenet121", rngs=nnx.Rngs(0))
    named = models.to_torch(model)
    named["trans1.bn.running_mean"] = np.full(96, 0.25)
    named["trans1.bn.running_var"] = np.full(96, 2.5)
    models.load_torch(model, named)
    np.testing.assert_array_equal(model.trans1.bn.mean, np.full(96, 0.25, np.float32))
    np.testing.assert_array_equal(model.trans1.bn.var, np.full(96, 2.5, np.float32))


def test_everything_that_does_not_fit_is_named_and_nothing_changes():
    named = weights()
    del named["fc2.bias"]
    named["fc4.weight"] = np.zeros((2, 2))
    named["conv1.weight"] = named["conv1.weight"].transpose(2, 3, 1, 0)
    named["conv2.bias"] = np.array(["a"] * 32)
    model = lenet()
    with pytest.raises(UserError) as error:
        models.load_torch(model, named)
    message = str(error.value)
    assert "missing: fc2.bias" in message
    assert "unexpected: fc4.weight" in message
    assert "conv1.weight has (5, 5, 1, 8) instead of (8, 1, 5, 5)" in message
    assert "conv2.bias holds" in message
    assert_same(model, lenet())


def test_long_lists_are_cut():
    with pytest.raises(UserError, match=r"missing: .*, and 2 more"):
        models.load_torch(lenet(), {})


def test_unreadable_files(tmp_path):
    model = lenet()
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not an archive")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"conv1.weight": np.array([{}], object)})
    other = tmp_path / "weights.pt"
    other.write_bytes(b"")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\xff\x00")
    for path, reason in (
        (broken, "cannot be read"),
        (pickled, "cannot be read"),
        (cut, "cannot be read"),
        (other, "must be"),
        (tmp_path / "none.npz", "no such file"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            models.load_torch(model, path)
        assert str(path) in str(error.value)
    assert_same(model, lenet())


@pytest.mark.parametrize("name", ["vgg19", "densenet121"])
def test_there_and_back(name):
    model = models.create(name, rngs=nnx.Rngs(1))
    before = nnx.clone(nnx.state(model))
    models.load_torch(model, {key: value + 1 for key, value in models.to_torch(model).items()})
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(np.asarray(old) + np.float32(1), new)

"""LeNet-5 against PyTorch's recorded one: as it trains, and as the paper's appendix masks it."""

import gzip
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
import pb_jax
from pb_jax.training.optimizers import amsgrad_torch

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def reference(torch_reference):
    with np.load(torch_reference, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def batches(data_folder):
    """MNIST's first 800 images in order, in batches of 100."""
    folder = data_folder / "mnist"
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 800 * 784), np.uint8, offset=16)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + 800), np.uint8, offset=8)
    images = (pixels.reshape(8, 100, 28, 28, 1) / np.float32(255) - 0.1307) / 0.3081
    return images.astype(np.float32), labels.reshape(8, 100).astype(np.int32)


def part(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


class Run(NamedTuple):
    losses: list
    first_gradients: dict
    final: dict
    mask: dict


def train(tx, reference, batches):
    """Eight steps from PyTorch's initial weights; trees under PyTorch's names."""
    model = models.create("lenet5", rngs=nnx.Rngs(0))
    models.load_torch(model, part(reference, "init/"))
    graph, params = nnx.split(model, nnx.Param)

    def named(tree):
        return models.to_torch(nnx.merge(graph, jax.tree.map(jnp.float32, tree)))

    def loss(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, grads

    state, losses, first = tx.init(params), [], {}
    for images, labels in zip(*batches, strict=True):
        params, state, value, grads = step(params, state, images, labels)
        losses.append(float(value))
        first = first or named(grads)
    mask = optax.tree.get(state, "mask")
    return Run(losses, first, named(params), {} if mask is None else named(mask))


def test_eight_steps(reference, batches):
    run = train(amsgrad_torch(1e-3), reference, batches)
    for name, wanted in part(reference, "grad0/").items():
        # Relative to the tensor's scale: single entries cancel to nearly nothing.
        atol = 1e-5 * np.sqrt(np.mean(wanted**2))
        np.testing.assert_allclose(
            run.first_gradients[name], wanted, rtol=1e-4, atol=atol, err_msg=name
        )
    np.testing.assert_allclose(run.losses, reference["losses"], rtol=1e-4)
    for name, wanted in part(reference, "final/").items():
        np.testing.assert_allclose(run.final[name], wanted, atol=1e-4, err_msg=name)


def test_the_appendix_with_its_mask(reference, batches):
    tx = pb_jax.partial_backprop(
        amsgrad_torch(1e-3),
        rule=pb_jax.fixed_threshold(0.5, learning_rate=1e-3),
        start_step=4,
        freeze="gradients",
    )
    run = train(tx, reference, batches)
    np.testing.assert_allclose(run.losses, reference["masked/losses"], rtol=1e-4)
    for name, wanted in part(reference, "masked/final/").items():
        np.testing.assert_allclose(run.final[name], wanted, atol=1e-4, err_msg=name)
    # A weight whose gradient lies within rounding of the threshold may fall on either side.
    wanted = part(reference, "masked/mask/")
    wrong = {name: int(np.sum(run.mask[name] != mask)) for name, mask in wanted.items()}
    assert sum(wrong.values()) <= 3, wrong

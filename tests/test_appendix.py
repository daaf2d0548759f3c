"""The paper's appendix, step by step: PyTorch's recorded LeNet-5 with its masked gradients."""

import gzip

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


def with_prefix(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_masked_gradients_reproduce_pytorch(reference, batches):
    model = models.create("lenet5", rngs=nnx.Rngs(0))
    models.load_torch(model, with_prefix(reference, "init/"))
    graph, params = nnx.split(model)
    tx = pb_jax.partial_backprop(
        amsgrad_torch(1e-3),
        rule=pb_jax.fixed_threshold(0.5, learning_rate=1e-3),
        start_step=4,
        freeze="gradients",
    )

    def loss(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for images, labels in zip(*batches, strict=True):
        params, state, value = step(params, state, jnp.asarray(images), jnp.asarray(labels))
        losses.append(float(value))
    np.testing.assert_allclose(losses, reference["masked/losses"], rtol=1e-4)

    final = models.to_torch(nnx.merge(graph, params))
    for name, wanted in with_prefix(reference, "masked/final/").items():
        np.testing.assert_allclose(final[name], wanted, atol=1e-4, err_msg=name)

    # A weight whose gradient lies within rounding of the threshold may fall on either side.
    mask = models.to_torch(
        nnx.merge(graph, jax.tree.map(lambda m: m.astype(jnp.float32), state.mask))
    )
    wrong = [
        np.sum(mask[name].astype(bool) != wanted)
        for name, wanted in with_prefix(reference, "masked/mask/").items()
    ]
    assert sum(wrong) <= 3, wrong

"""LeNet-5 against PyTorch's recorded one: first gradients, eight losses, final parameters."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
from pb_jax.training.optimizers import amsgrad_torch

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def reference(torch_reference):
    with np.load(torch_reference, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def batches(data_folder):
    with gzip.open(data_folder / "mnist" / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 800 * 784), np.uint8, offset=16)
    with gzip.open(data_folder / "mnist" / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + 800), np.uint8, offset=8)
    images = (pixels.astype(np.float32) / 255 - 0.1307) / 0.3081
    return images.reshape(8, 100, 28, 28, 1).astype(np.float32), labels.reshape(8, 100)


def part(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_eight_steps(reference, batches):
    model = models.create("lenet5", rngs=nnx.Rngs(0))
    models.load_torch(model, part(reference, "init/"))
    graph, params = nnx.split(model, nnx.Param)
    optimizer = amsgrad_torch(1e-3)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = nnx.merge(graph, params)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, gradients

    state, losses = optimizer.init(params), []
    for images, labels in zip(*batches, strict=True):
        params, state, value, gradients = step(
            params, state, jnp.asarray(images), jnp.asarray(labels, jnp.int32)
        )
        if not losses:
            first = models.to_torch(nnx.merge(graph, gradients))
            for name, wanted in part(reference, "grad0/").items():
                # Relative to the tensor's scale: single entries cancel to nearly nothing.
                scale = np.sqrt(np.mean(wanted**2))
                np.testing.assert_allclose(
                    first[name], wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=name
                )
        losses.append(float(value))
    np.testing.assert_allclose(losses, reference["losses"], rtol=1e-4)
    for name, value in models.to_torch(nnx.merge(graph, params)).items():
        np.testing.assert_allclose(value, reference[f"final/{name}"], atol=1e-4, err_msg=name)

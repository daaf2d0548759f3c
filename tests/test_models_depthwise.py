import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import depthwise as module
from models.depthwise import depthwise


def values(size, kernel, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, *size, 3)), rng.standard_normal((kernel, kernel, 1, 3))


def by_loops(x, kernel, stride):
    """TensorFlow's SAME: the output is H / stride rounded up, odd padding goes to the end."""
    n, height, width, channels = x.shape
    size = kernel.shape[0]
    out = np.zeros((n, -(-height // stride), -(-width // stride), channels))
    before = [
        max((-(-length // stride) - 1) * stride + size - length, 0) // 2
        for length in (height, width)
    ]
    for i, j, a, b in np.ndindex(*out.shape[1:3], size, size):
        row, column = i * stride + a - before[0], j * stride + b - before[1]
        if 0 <= row < height and 0 <= column < width:
            out[:, i, j] += x[:, row, column] * kernel[a, b, 0]
    return out


@pytest.mark.parametrize("size", [(7, 7), (8, 6), (3, 9), (1, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_ways_against_loops(size, kernel, stride):
    x, taps = values(size, kernel)
    wanted = by_loops(x, taps, stride)
    for way in (module._shifted_sum, module._stock):
        got = jax.jit(way, static_argnums=2)(jnp.float32(x), jnp.float32(taps), stride)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_gradients_of_both_ways_agree():
    x, taps = map(jnp.float32, values((6, 5), 3))
    weights = jnp.float32(values((3, 3), 3, seed=1)[0])

    def loss(x, taps, way):
        return jnp.sum(weights * way(x, taps, 2))

    got = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(x, taps, depthwise)
    wanted = jax.grad(loss, (0, 1))(x, taps, module._stock)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

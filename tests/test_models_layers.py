import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers import BatchNorm, avg_pool, global_avg_pool, max_pool


def batch_norm(features=3):
    layer = BatchNorm(features, rngs=nnx.Rngs(0))
    layer.scale[...] = jnp.linspace(0.5, 2.0, features)
    layer.bias[...] = jnp.linspace(-1.0, 1.0, features)
    return layer


def values(shape=(4, 5, 6, 3), dtype=jnp.float32):
    return (2.0 * jax.random.normal(jax.random.key(0), shape) + 3.0).astype(dtype)


def test_training_normalises_with_the_biased_variance():
    x = values()
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    layer = batch_norm()
    wanted = (wide - mean) / np.sqrt(var + 1e-5) * np.asarray(layer.scale) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x), wanted, atol=2e-6)


def test_running_variance_is_unbiased():
    layer, mean, var = batch_norm(), np.zeros(3), np.ones(3)
    for seed in range(3):
        x = values() * (1.0 + seed)
        wide = np.asarray(x, np.float64)
        layer(x)
        mean = 0.9 * mean + 0.1 * wide.mean((0, 1, 2))
        var = 0.9 * var + 0.1 * wide.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var, var, rtol=1e-5)


def test_evaluation_uses_and_keeps_the_running_ones():
    layer = batch_norm()
    layer.mean[...], layer.var[...] = jnp.array([1.0, 2, 3]), jnp.array([4.0, 9, 16])
    layer.eval()
    x = values()
    wanted = (np.asarray(x) - [1, 2, 3]) / np.sqrt(np.array([4, 9, 16]) + 1e-5)
    wanted = wanted * np.asarray(layer.scale) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x), wanted, atol=2e-6)
    np.testing.assert_array_equal(layer.mean, [1.0, 2, 3])
    layer.train()
    layer(x)
    assert not np.array_equal(layer.mean, [1.0, 2, 3])


def test_gradient_against_the_two_pass_formula():
    x, weights = values(), jax.random.normal(jax.random.key(1), (4, 5, 6, 3))

    def reference(x, scale, bias):
        mean = jnp.mean(x, (0, 1, 2))
        var = jnp.mean((x - mean) ** 2, (0, 1, 2))
        return jnp.sum(weights * ((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias))

    def ours(x, scale, bias):
        layer = BatchNorm(3, rngs=nnx.Rngs(0))
        layer.scale[...], layer.bias[...] = scale, bias
        return jnp.sum(weights * layer(x))

    arguments = (x, batch_norm().scale[...], batch_norm().bias[...])
    got, wanted = (jax.grad(f, argnums=(0, 1, 2))(*arguments) for f in (ours, reference))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(b).max()) + 1e-5)


def test_constant_channels_stay_finite():
    layer = batch_norm()
    out = layer(jnp.full((4, 2, 2, 3), 1234.567))
    assert np.isfinite(out).all()
    assert (np.asarray(layer.var) >= 0).all()


def test_bfloat16_keeps_float32_statistics():
    layer = batch_norm()
    assert layer(values(dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    wanted = batch_norm()
    wanted(values(dtype=jnp.bfloat16).astype(jnp.float32))
    assert layer.mean.dtype == jnp.float32
    np.testing.assert_allclose(layer.mean, wanted.mean, rtol=1e-6)
    np.testing.assert_allclose(layer.var, wanted.var, rtol=1e-6)


def test_a_single_value_has_no_variance():
    with pytest.raises(ValueError, match="more than one value"):
        batch_norm()(jnp.zeros((1, 1, 1, 3)))


@pytest.mark.parametrize(("pool", "reduce"), [(max_pool, np.max), (avg_pool, np.mean)])
@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_pooling_leaves_out_odd_edges(pool, reduce, size):
    x = values((2, *size, 3))
    got = pool(x)
    assert got.shape == (2, size[0] // 2, size[1] // 2, 3)
    for i in range(size[0] // 2):
        for j in range(size[1] // 2):
            window = np.asarray(x)[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_allclose(got[:, i, j], reduce(window, (1, 2)), rtol=1e-6)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_max_pool_sends_the_gradient_to_the_largest(size):
    x = values((2, *size, 3))
    weights = values((2, size[0] // 2, size[1] // 2, 3))
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(weights * max_pool(x)))(x))
    wanted = np.zeros_like(gradient)
    for n, i, j, c in np.ndindex(*weights.shape):
        window = np.asarray(x)[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        down, across = np.unravel_index(window.argmax(), (2, 2))
        wanted[n, 2 * i + down, 2 * j + across, c] = weights[n, i, j, c]
    np.testing.assert_array_equal(gradient, wanted)


def test_max_pool_of_equal_values_counts_once():
    x = jnp.array([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(x)
    np.testing.assert_array_equal(gradient.ravel(), [1.0, 0.0, 0.0, 0.0])


def test_global_average_is_float32():
    got = global_avg_pool(values((2, 3, 4, 5), jnp.bfloat16))
    assert got.dtype == jnp.float32
    wide = np.asarray(values((2, 3, 4, 5), jnp.bfloat16), np.float32)
    np.testing.assert_allclose(got, wide.mean((1, 2)), rtol=1e-6)

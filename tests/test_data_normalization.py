import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pb_jax.data import normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def test_matches_float64_arithmetic_under_jit():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    result = jax.jit(lambda x: normalize(x, MEAN, STD))(images)
    assert result.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_needs_one_constant_a_channel(name):
    constants = {"mean": MEAN, "std": STD, name: (0.5,)}
    with pytest.raises(ValueError, match=f"{name} must hold 3 numbers.*got \\(0.5,\\)"):
        normalize(np.zeros((1, 2, 2, 3), np.uint8), **constants)

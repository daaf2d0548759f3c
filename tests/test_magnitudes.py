import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pb_jax import magnitudes as mag


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**127, width=32, allow_subnormal=False), min_size=9, max_size=9),
    st.integers(1, 9),
)
def test_smallest_is_an_order_statistic(values, rank):
    values = np.array(values, np.float32)
    parts = [jnp.asarray(values[:4].reshape(2, 2)), jnp.asarray(values[4:])]
    assert mag.smallest(parts, rank) == np.sort(values)[rank - 1]


def test_smallest_of_too_few_finite_values_is_the_largest_of_them():
    assert mag.smallest([jnp.array([1.0, jnp.inf, 2.0, jnp.nan])], 4) == 2.0


def test_histogram_is_numpys():
    rng = np.random.default_rng(0)
    values = [rng.exponential(size=s).astype(np.float32) for s in ((40, 3), (7,), ())]
    flat = np.concatenate([v.ravel() for v in values])
    grid = mag.grid(jnp.array(0.25), jnp.array(2.25), 8)
    found = mag.histogram([jnp.asarray(v) for v in values], grid)
    np.testing.assert_array_equal(found, np.histogram(flat, 8, (0.25, 2.25))[0])
    assert found.dtype == jnp.int32


def test_mean_of_millions_in_float32():
    values = np.random.default_rng(0).exponential(size=2**22).astype(np.float32)
    assert np.isclose(mag.mean([jnp.asarray(values)]), values.astype(np.float64).mean(), rtol=2e-6)


def test_mean_near_the_end_of_float32():
    assert np.isclose(mag.mean([jnp.full(1000, 3e38)]), 3e38)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_magnitudes_are_float32(dtype):
    (found,) = mag.magnitudes(jnp.array([-2.0, 3.0]).astype(dtype))
    assert found.dtype == jnp.float32
    assert found.tolist() == [2.0, 3.0]


def test_joining_keeps_every_number_in_pieces_of_limited_size():
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(0, 9000, 100), 20_000, 16_384]
    values = [jnp.asarray(rng.random(size), jnp.float32) for size in sizes]
    pieces = mag.joined(values)
    assert 3 <= len(pieces) <= 6
    assert max(piece.size for piece in pieces) <= 2**18
    before, after = (np.sort(np.concatenate(arrays)) for arrays in (values, pieces))
    np.testing.assert_array_equal(before, after)
    assert len(mag.joined(values[:20])) == 20, "a few are left alone"

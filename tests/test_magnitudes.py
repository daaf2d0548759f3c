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


@pytest.mark.parametrize("together", [1, 7, 64, 1000])
def test_pieces_are_as_good_as_the_whole(together, monkeypatch):
    monkeypatch.setattr(mag, "_IN_CACHE", together)
    rng = np.random.default_rng(together)
    arrays = [rng.lognormal(size=s).astype(np.float32) for s in ((0,), (), (7, 9), (64,), (5, 13))]
    arrays[2][0, :4] = np.nan, np.inf, 0, 0
    values, flat = [jnp.asarray(a) for a in arrays], np.concatenate([a.ravel() for a in arrays])
    finite = np.sort(flat[np.isfinite(flat)])
    usable = finite[2:]

    counts = mag.count(values)
    assert [int(x) for x in counts[:4]] == [flat.size, 2, 2, usable.size]
    assert (counts.low, counts.high) == (usable[0], usable[-1])
    grid = mag.grid(jnp.array(0.25), jnp.array(4.25), 8)
    members = np.histogram(usable, 8, (0.25, 4.25))[0]
    np.testing.assert_array_equal(mag.histogram(values, grid), members)
    ends = mag.extents_of_cells(values, grid, jnp.array(0), jnp.array(4), cells=2)
    for edge, (low, high) in zip((0.25, 2.25), ends, strict=True):
        within = usable[(usable >= edge) & (usable < edge + 1)]
        assert (low, high) == (within[0], within[-1])
    for rank in (1, 50, finite.size):
        assert mag.smallest(values, rank) == finite[rank - 1]
        assert mag.largest(values, rank) == finite[-rank]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_magnitudes_are_float32(dtype):
    (found,) = mag.magnitudes(jnp.array([-2.0, 3.0]).astype(dtype))
    assert found.dtype == jnp.float32
    assert found.tolist() == [2.0, 3.0]


def test_joining_keeps_every_number_in_pieces_of_limited_size():
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(0, 9000, 100), 20_000, 16_384]
    values = [jnp.asarray(rng.random(size), jnp.float32) for size in sizes]
    pieces = mag.fewer(values)
    assert 3 <= len(pieces) <= 6
    assert max(piece.size for piece in pieces) <= 2**18
    before, after = (np.sort(np.concatenate(arrays)) for arrays in (values, pieces))
    np.testing.assert_array_equal(before, after)
    assert len(mag.fewer(values[:20])) == 20, "a few are left alone"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3e38, np.inf, np.nan])
        | st.floats(0, 8, width=32, allow_subnormal=False),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_sorting_finds_what_counting_finds(values, rank):
    parts = [jnp.asarray(values[:3], jnp.float32), jnp.asarray(values[3:], jnp.float32)]
    rank = jnp.array(min(rank, len(values)))
    by_digits, in_order = mag._ranked_by_digits(parts, rank), mag._ranked_in_order(parts, rank)
    np.testing.assert_array_equal(by_digits, in_order)
    grid = mag.grid(jnp.array(0.25), jnp.array(2.0), 8)
    found = mag.histogram_in_order(mag.ordered(parts), grid)
    np.testing.assert_array_equal(mag.histogram(parts, grid), found)
    assert found.dtype == jnp.int32

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gaussian_kde

from pb_jax.density import bandwidth, density_at_edges, grid_cells, highest_density_region

CELLS = 4096


@pytest.fixture
def sample():
    return np.random.default_rng(0).normal(CELLS / 2, CELLS / 12, 3000).clip(0, CELLS - 1e-3)


@pytest.fixture
def counts(sample):
    return jnp.asarray(np.histogram(sample, CELLS, (0, CELLS))[0], jnp.int32)


@pytest.mark.parametrize("method", ["scott", "silverman"])
def test_bandwidth_is_scipys(sample, counts, method):
    wanted = gaussian_kde(sample, method).factor * sample.std(ddof=1)
    assert np.isclose(bandwidth(counts, method), wanted, rtol=1e-4)


def test_density_is_scipys(sample, counts):
    kernel = gaussian_kde(sample)
    found = density_at_edges(counts, jnp.float32(kernel.factor * sample.std(ddof=1)))
    wanted = kernel(np.arange(CELLS + 1)) * sample.size
    assert np.allclose(found, wanted, rtol=2e-3, atol=1e-4 * wanted.max())


@pytest.mark.parametrize("width", [2.0, 40.0, CELLS / 8, CELLS / 7.9, CELLS / 4, CELLS / 2])
def test_density_of_any_width_is_a_sum_of_kernels(width, counts):
    edges, centres = np.arange(CELLS + 1)[:, None], np.arange(CELLS)[None] + 0.5
    kernels = np.exp(-0.5 * ((edges - centres) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    wanted = kernels @ np.asarray(counts, float)
    found = density_at_edges(counts, jnp.float32(width))
    # At 2 cells the kernel is narrowed by an eightieth: by what the cells have spread already. Wide
    # ones see pairs of cells, whose members are up to half a cell off.
    tolerance = 0.02 if width == 2 else 1e-5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * wanted.max())


def test_kernels_do_not_reach_round_the_grid():
    counts = jnp.zeros(1024, jnp.int32).at[0].set(1)
    assert (
        density_at_edges(counts, jnp.float32(512))[-1]
        < density_at_edges(counts, jnp.float32(512))[-2]
    )


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_region_holds_what_it_should_where_it_is_densest(sample, counts, coverage):
    density = density_at_edges(counts, bandwidth(counts, "scott"))
    wanted = int(np.ceil(coverage * sample.size))
    region = highest_density_region(counts, density, jnp.int32(wanted))
    inside = np.sum((sample >= region.low) & (sample <= region.high))
    assert abs(inside - wanted) <= 3
    ends = np.interp([region.low, region.high], np.arange(CELLS + 1), density)
    assert np.isclose(*ends, rtol=1e-2), "both ends of one hump lie at one level"


def test_region_leaves_out_a_gap_but_its_interval_spans_it():
    counts = jnp.array([0, 50, 0, 0, 0, 0, 40, 0, 10, 0])
    density = jnp.array([0, 50, 50, 0, 0, 0, 40, 40, 10, 10, 0], jnp.float32)
    region = highest_density_region(counts, density, jnp.int32(90))
    assert 0 < region.low < 1
    assert 7 <= region.high <= 8


def test_grid_resolves_the_kernel_at_worst():
    for n in (50, 1000, 10**5, 2 * 10**7):
        assert grid_cells(n) >= 4 * n**0.7

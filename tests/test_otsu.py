import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from pb_jax.otsu import otsu_split
from tests.float64_reference import otsu


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
def test_least_within_class_variance(members, seed):
    members = np.pad(members, (0, 40 - len(members)))  # one shape, one compilation
    present = np.flatnonzero(members)
    means = np.arange(members.size) + np.random.default_rng(seed).random(members.size)
    shares = members / max(members.sum(), 1)
    found = int(otsu_split(jnp.asarray(shares, jnp.float32), jnp.asarray(means, jnp.float32)))
    wanted = otsu(shares[present], means[present])
    assert found == (-1 if wanted is None else present[wanted])


def test_the_flat_minimum_of_many_weights():
    """Beside the best split of a smooth histogram the next is worse by less than float32 sees."""
    edges = np.linspace(0, 3, 301)
    for shift in np.linspace(0, 0.01, 23):
        shares = -np.diff(np.exp(-(edges + shift)))
        shares /= shares.sum()
        means = (edges[1:] + edges[:-1]) / 2
        wanted = otsu(shares, means)
        found = otsu_split(jnp.asarray(shares, jnp.float32), jnp.asarray(means, jnp.float32))
        assert int(found) == wanted


def test_equals_scikit_image():
    members, edges = np.histogram(np.random.default_rng(0).lognormal(size=10_000), 256, (0, 5))
    means = (edges[1:] + edges[:-1]) / 2
    wanted = threshold_otsu(hist=(members, means))
    shares = jnp.asarray(members / members.sum(), jnp.float32)
    assert np.isclose(means[int(otsu_split(shares, jnp.asarray(means, jnp.float32)))], wanted)


def test_the_lowest_split_wins_a_tie():
    assert int(otsu_split(jnp.full(3, 1 / 3), jnp.array([0.0, 1.0, 2.0]))) == 0

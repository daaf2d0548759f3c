import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pb_jax.study.statistics import Spread, paired, spread

NUMBERS = st.floats(-100, 100)


@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_spread_is_numpys(values):
    mean, sd, n = spread(values)
    assert n == len(values)
    np.testing.assert_allclose(mean, np.mean(values), atol=1e-12)
    np.testing.assert_allclose(sd, np.std(values, ddof=1), atol=1e-12)


def test_one_value_has_no_deviation_and_none_has_no_mean():
    assert spread([0.25]) == Spread(0.25, None, 1)
    mean, sd, n = spread([None, float("nan")])
    assert np.isnan(mean)
    assert (sd, n) == (None, 0)


@given(st.dictionaries(st.integers(0, 9), NUMBERS), st.dictionaries(st.integers(0, 9), NUMBERS))
def test_paired_takes_the_seeds_that_both_have(values, others):
    both = {seed for seed in values if seed in others}
    assert paired(values, others) == {seed: values[seed] - others[seed] for seed in both}


def test_what_the_seeds_share_drops_out():
    full = {seed: 0.9 + seed / 10 for seed in range(5)}
    frozen = {seed: value - 0.01 for seed, value in full.items()}
    alone, together = (spread([*v.values()]).sd for v in (frozen, paired(frozen, full)))
    assert alone is not None
    assert together is not None
    assert together < 1e-12 < 0.1 < alone

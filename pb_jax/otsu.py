"""Otsu's split of a histogram with few cells."""

import jax.numpy as jnp
from jax import Array


def otsu_split(shares: Array, means: Array) -> Array:
    """The last sub-range of the lower class in the split of least within-class variance.

    For every split k the classes are {1..k} and {k+1..}; the within-class variance is
    Σ P_i (μ_i - class mean)^2 (Otsu 1979, "A Threshold Selection Method from Gray-Level
    Histograms"). The lowest k wins a tie. Sub-ranges without members take no part.

    Args:
        shares: float32 (bins,), P: each sub-range's share of the members, in sum 1.
        means: float32 (bins,), μ: the mean of each sub-range's members; any finite value where
            there is none.

    Returns:
        int32 scalar, the index of a sub-range that has members; -1 where fewer than two have.

    >>> int(otsu_split(jnp.array([0.4, 0.2, 0.0, 0.4]), jnp.array([0.0, 1.0, 0.0, 9.0])))
    1
    """
    present = shares > 0
    index = jnp.arange(shares.size)
    first, last = jnp.argmax(present), shares.size - 1 - jnp.argmax(present[::-1])
    candidate = present & (index < last)

    weighted = shares * means
    below, above = jnp.cumsum(shares), _sum_behind(shares)
    mean_below = jnp.cumsum(weighted) / jnp.where(below > 0, below, 1)
    mean_above = _sum_behind(weighted) / jnp.where(above > 0, above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    best = jnp.argmax(jnp.where(candidate, between, -1))

    # Near its flat minimum the criterion changes by less than float32 resolves. What a sub-range
    # changes by going over to the lower class is resolved well (Hartigan's exchange criterion):
    # descend from the approximate best to where it changes sign.
    before = jnp.roll(below, 1).at[0].set(0)
    mean_before = jnp.where(before > 0, jnp.roll(mean_below, 1), means)
    change = shares * (
        before / jnp.where(present, before + shares, 1) * (means - mean_before) ** 2
        - above / jnp.where(present, above + shares, 1) * (means - mean_above) ** 2
    )
    barrier = present & (index > best) & ((change >= 0) | (index == last))
    end = jnp.argmax(barrier)
    best = jnp.max(jnp.where(candidate & (index < end), index, -1))
    settled = candidate & (index <= best) & ((change < 0) | (index == first))
    best = jnp.max(jnp.where(settled, index, -1))
    return jnp.where(first < last, best, -1).astype(jnp.int32)


def _sum_behind(x: Array) -> Array:
    """Sum of the elements behind each, added from the end: small tails keep their digits."""
    return jnp.roll(jnp.cumsum(x[::-1])[::-1], -1).at[-1].set(0)

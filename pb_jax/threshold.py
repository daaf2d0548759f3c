"""The threshold of Partial Backpropagation: kernel density, region, sub-ranges, Otsu's split."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pb_jax import density as kde
from pb_jax import magnitudes as mag
from pb_jax.checks import check_choice, check_number
from pb_jax.otsu import otsu_split
from pb_jax.sharding import automatically, here

GRID_POINTS = 512  # of the reported density
_SUBCELLS = 1 << 19  # cells of all sub-ranges together: a sub-range's mean is that exact
_SUBCELLS_OF_ALL_GROUPS = 1 << 24


class ThresholdEstimate(NamedTuple):
    """What was found, in units of x = abs(gradient) / learning_rate; arrays on the device.

    Attributes:
        threshold: scalar, t. NaN where there is no usable gradient or no spread.
        region: (2,), lo and hi: the smallest interval around the highest-density region.
        bandwidth: scalar, the kernel's standard deviation h.
        grid: (512,), equally spaced points from the smallest x to a quarter beyond the region.
        density: (512,), the kernel density there, which integrates to 1 over all x.
        subrange_means: (bins,), μ: mean of each sub-range's members; NaN where it has none.
        subrange_shares: (bins,), P: each sub-range's share of the region's members.
        num_total: int32 scalar, number of gradients.
        num_zero: int32 scalar, gradients that are zero.
        num_nonfinite: int32 scalar, NaN or infinite gradients.
    """

    threshold: Array
    region: Array
    bandwidth: Array
    grid: Array
    density: Array
    subrange_means: Array
    subrange_shares: Array
    num_total: Array
    num_zero: Array
    num_nonfinite: Array


def estimate_threshold(
    grads: Any,
    *,
    bins: int = 300,
    coverage: float = 0.95,
    bandwidth: str | float = "scott",
    scale: float = 1.0,
    learning_rate: ArrayLike = 1.0,
) -> ThresholdEstimate:
    """Estimate the magnitude up to which gradients carry little.

    With X all x = abs(gradient) / learning_rate that are finite and not zero: take a Gaussian
    kernel density of X, the smallest interval around its highest-density region that holds
    `coverage` of X, `bins` equal sub-ranges of it, and split their means by Otsu's criterion. The
    threshold is `scale` times the mean of the lower class's last sub-range. It costs five passes
    over the gradients, in place: no concatenation, no copy to the host. A single accelerator sorts
    up to 2^27 of them first, in a copy.

    Args:
        grads: pytree of gradients of any shapes and floating dtypes; other leaves are left out.
        bins: number of sub-ranges, 2 to 65,536. The paper: 300.
        coverage: share of X that the region holds, in (0, 1].
        bandwidth: "scott", n^(-1/5) σ, "silverman", (3n/4)^(-1/5) σ, or the bandwidth itself in
            units of x (not scipy's factor on σ), kept within two cells of the grid and half of
            the range of X; the estimate says what was taken.
        scale: factor on the result, above 0: the paper's "slight tweak".
        learning_rate: α, above 0; may be traced. It scales the result, and does not change which
            gradients are below it.

    Returns:
        A `ThresholdEstimate`.

    Raises:
        ValueError: for an argument out of range.
        TypeError: for an argument of another type.

    Source:
        Section 3 of the paper; what it leaves open is settled in docs/method.md.

    Example:
        >>> import jax, pb_jax
        >>> grads = {"kernel": jax.random.exponential(jax.random.key(0), (300, 300))}
        >>> estimate = pb_jax.estimate_threshold(grads)
        >>> 1.0 < estimate.threshold < 1.2
        Array(True, dtype=bool)
    """
    check_estimate(bins, coverage, bandwidth, scale, learning_rate)

    def estimate(grads: Any) -> ThresholdEstimate:
        groups = [mag.magnitudes(grads)]
        alpha = here(learning_rate)
        stacked = estimate_groups(groups, bins, coverage, bandwidth, scale, alpha)
        return in_units(jax.tree.map(lambda x: x[0], stacked), alpha)

    return automatically(estimate, None, grads)


def check_estimate(bins, coverage, bandwidth, scale, learning_rate) -> None:
    """Raise for an argument of `estimate_threshold` that is out of range."""
    check_number("bins", bins, whole=True, least=2, most=65_536)
    check_number("coverage", coverage, above=0, most=1)
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, ("scott", "silverman"), "or a number above 0")
    else:
        check_number("bandwidth", bandwidth, above=0)
    check_number("scale", scale, above=0)
    check_number("learning_rate", learning_rate, above=0)


def in_units(found: ThresholdEstimate, learning_rate: ArrayLike) -> ThresholdEstimate:
    """An estimate in units of abs(gradient), in those of x = abs(gradient) / learning_rate."""
    return found._replace(
        threshold=found.threshold / learning_rate,
        region=found.region / learning_rate,
        bandwidth=found.bandwidth / learning_rate,
        grid=found.grid / learning_rate,
        density=found.density * learning_rate,
        subrange_means=found.subrange_means / learning_rate,
    )


def estimate_groups(
    groups: Sequence[Sequence[Array]],
    bins: int,
    coverage: float,
    bandwidth: str | float,
    scale: float,
    learning_rate: ArrayLike,
) -> ThresholdEstimate:
    """Estimates for several groups of magnitudes, each on its own, stacked along a first axis.

    The result is in units of abs(gradient); `learning_rate` only says what a bandwidth given as a
    number means. Everything that does not touch the gradients is compiled once for all groups.
    """
    method = bandwidth if isinstance(bandwidth, str) else None
    width = 1.0 if isinstance(bandwidth, str) else bandwidth * learning_rate
    return _estimate_groups(groups, width, int(bins), float(coverage), method, float(scale))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _estimate_groups(groups, width, bins, coverage, method, scale) -> ThresholdEstimate:
    estimate = functools.partial(
        _estimated, bins=bins, coverage=coverage, method=method, scale=scale
    )
    in_order = functools.partial(estimate, in_order=True)
    return mag.either_way(estimate, in_order, groups, width)


def _estimated(
    groups, width, *, bins, coverage, method, scale, in_order=False
) -> ThresholdEstimate:
    """See `estimate_groups`. `in_order`: by sorting the magnitudes, which changes no result."""
    arrange = mag.ordered if in_order else mag.fewer
    histogram = mag.histogram_in_order if in_order else mag.histogram
    groups = [arrange(values) for values in groups]
    cells = kde.grid_cells(max(sum(value.size for value in values) for values in groups))
    parts = max(min(_SUBCELLS, _SUBCELLS_OF_ALL_GROUPS // len(groups)) // bins, 8)

    counts = [mag.count(values) for values in groups]
    usable = jnp.stack([c.usable for c in counts])
    spread = jnp.stack([c.high > c.low for c in counts])
    low = jnp.where(spread, jnp.stack([c.low for c in counts]), 0)
    high = jnp.where(spread, jnp.stack([c.high for c in counts]), 1)
    grid = mag.grid(low, high, cells)
    low, high = grid.low, grid.high

    coarse = jnp.stack([histogram(v, grid.at(i)) for i, v in enumerate(groups)])
    find = functools.partial(_find_region, width=width, method=method, coverage=coverage)
    found = _for_each(find, spread, coarse, low, high, usable)
    first, last = mag.settled(found.first, found.last)
    begin, end = found.begin, found.end
    # The ends are known to a part of a cell. What the cells hold makes them exact, which matters
    # where weights are few, or equal: the region shrinks to its outermost members, and takes in
    # one of those that it needs to reach the coverage.
    (least, most), (least_of_last, most_of_last) = _extents_of_cells(groups, grid, first, last)
    inner = jnp.where(found.partial, most, jnp.inf)
    begin = jnp.where(least <= most, jnp.clip(begin, least, inner), begin)
    inner = jnp.where(found.partial, least_of_last, -jnp.inf)
    clipped = jnp.clip(end, inner, most_of_last)
    end = jnp.where(least_of_last <= most_of_last, clipped, end)

    grid = mag.grid(begin, end, bins * parts)
    begin, end = grid.low, grid.high
    fine = jnp.stack([histogram(v, grid.at(i)) for i, v in enumerate(groups)])
    fine = fine.reshape(-1, bins, parts)
    split, mean, shares, means = _for_each(_split_region, spread, fine, begin, end)
    # The mean is known to a part of a sub-range; that of equal values is their value exactly.
    (split,) = mag.settled(split)
    ((least, most),) = _extents_of_cells(groups, grid, split * parts, cells=parts)
    mean = jnp.clip(mean, least, most)

    known = spread & (end > begin) & (split >= 0)

    def nan_unless(condition: Array, x: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)

    return ThresholdEstimate(
        threshold=nan_unless(known, scale * mean),
        region=nan_unless(spread, jnp.stack([begin, end], axis=1)),
        bandwidth=nan_unless(spread, found.bandwidth),
        grid=nan_unless(spread, found.grid),
        density=nan_unless(spread, found.density),
        subrange_means=nan_unless(spread, means),
        subrange_shares=nan_unless(spread, shares),
        num_total=jnp.array([c.total for c in counts], jnp.int32),
        num_zero=jnp.stack([c.zero for c in counts]),
        num_nonfinite=jnp.stack([c.nonfinite for c in counts]),
    )


class _Found(NamedTuple):
    begin: Array  # ends of the region, in gradient units
    end: Array
    first: Array  # the cells in which they lie, and whether it needs a part of their members
    last: Array
    partial: Array
    bandwidth: Array
    grid: Array
    density: Array


def _find_region(counts, low, high, usable, width, method, coverage) -> _Found:
    """The region of one group, from its histogram on a grid from `low` to `high`."""
    cells = counts.size
    cell = (high - low) / cells
    h = width / cell if method is None else kde.bandwidth(counts, method)
    h = jnp.clip(h, 2, cells / 2).astype(jnp.float32)
    density = kde.density_at_edges(counts, h)
    # The factor keeps float32's rounding of n * coverage from asking for one member more.
    n = usable.astype(jnp.float32)
    wanted = jnp.ceil(n * coverage * (1 - 2e-7)).astype(jnp.int32)
    region = kde.highest_density_region(counts, density, jnp.maximum(wanted, 1))

    upto = jnp.minimum(region.high + (region.high - region.low) / 4, cells)
    position = jnp.linspace(0, 1, GRID_POINTS) * upto
    return _Found(
        begin=low + region.low * cell,
        end=jnp.minimum(low + region.high * cell, high),
        first=region.first,
        last=region.last,
        partial=region.partial,
        bandwidth=h * cell,
        grid=low + position * cell,
        density=jnp.interp(position, jnp.arange(cells + 1.0), density) / (n * cell),
    )


def _split_region(counts, begin, end) -> tuple[Array, Array, Array, Array]:
    """Otsu's split of one group's sub-ranges, from counts of shape (bins, parts of each).

    Returns:
        The last sub-range of the lower class, its mean, and all shares and means, NaN where there
        is no member.
    """
    bins, parts = counts.shape
    members = jnp.sum(counts, axis=1, dtype=jnp.int32)
    present = members > 0
    shares = members.astype(jnp.float32) / jnp.maximum(jnp.sum(members), 1).astype(jnp.float32)
    centres = jnp.broadcast_to(jnp.arange(0.5, parts) / parts, counts.shape)
    offsets = jnp.sum(counts.astype(jnp.float32) * centres, axis=1)
    means = jnp.arange(bins * 1.0) + offsets / jnp.maximum(members, 1).astype(jnp.float32)
    split = otsu_split(shares, means)
    means = begin + means / bins * (end - begin)
    return split, means[split], shares, jnp.where(present, means, jnp.nan)


def _extents_of_cells(groups, grid, *firsts, cells=1) -> list[tuple[Array, Array]]:
    """`magnitudes.extents_of_cells` of each group, stacked."""
    ends = [
        mag.extents_of_cells(values, grid.at(i), *(first[i] for first in firsts), cells=cells)
        for i, values in enumerate(groups)
    ]
    return [
        (jnp.stack([low for low, _ in of_all]), jnp.stack([high for _, high in of_all]))
        for of_all in zip(*ends, strict=True)
    ]


def _for_each(function, wanted, *stacked):
    """Apply a function along the first axis, compiled once, or get zeros where it is not wanted.

    A single row needs no loop. A loop as well as a branch is compiled by itself, so that rounding
    does not depend on the program around it: whether it is for one device or for several.
    """
    if len(wanted) > 1:
        return jax.lax.map(lambda row: function(*row), stacked)
    row, function = [x[0] for x in stacked], jax.jit(function)  # traced once
    shapes = jax.eval_shape(function, *row)

    def zeros(counts: Array, *_: Array) -> Any:
        zero = counts.ravel()[0] * 0  # which within `shard_map` has the type of what is found
        return jax.tree.map(lambda like: jnp.full(like.shape, zero, like.dtype), shapes)

    found = jax.lax.cond(wanted[0], function, zeros, *row)
    return jax.tree.map(lambda x: x[None], found)

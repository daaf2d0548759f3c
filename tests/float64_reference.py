"""The threshold in float64 numpy, written from the definition and sharing no code with pb_jax."""

from typing import NamedTuple

import numpy as np
from scipy import fft


class Reference(NamedTuple):
    threshold: float
    frozen: float
    lo: float
    hi: float
    bandwidth: float

    def tolerance(self, bins: int) -> float:
        """Half a percent or one sub-range, whichever is larger."""
        return max(0.005 * self.threshold, (self.hi - self.lo) / bins)


def reference(values, bins=300, coverage=0.95, bandwidth="scott", scale=1.0) -> Reference:
    x = np.abs(np.asarray(values, np.float64)).ravel()
    sample = np.sort(x[np.isfinite(x) & (x > 0)])
    n = sample.size
    if n == 0 or sample[0] == sample[-1]:
        return Reference(np.nan, 0.0, np.nan, np.nan, np.nan)
    h = bandwidth
    if isinstance(bandwidth, str):
        h = sample.std(ddof=1) * (n * {"scott": 1.0, "silverman": 0.75}[bandwidth]) ** -0.2
    unique, counts = np.unique(sample, return_counts=True)
    density = exact_density if unique.size <= 5000 else binned_density
    f = density(unique, counts, h)

    level = level_of(f(unique), counts, int(np.ceil(coverage * n - 1e-9)))
    inside = np.flatnonzero(f(unique) >= level)
    lo = crossing(f, level, unique, inside[0], inside[0] - 1)
    hi = crossing(f, level, unique, inside[-1], inside[-1] + 1)

    region = sample[(sample >= lo) & (sample <= hi)]
    index = np.searchsorted(np.linspace(lo, hi, bins + 1), region, side="right") - 1
    index = np.clip(index, 0, bins - 1)
    members = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=region, minlength=bins)
    present = np.flatnonzero(members)
    split = otsu(members[present] / region.size, sums[present] / members[present])
    if split is None:
        return Reference(np.nan, 0.0, lo, hi, h)
    t = scale * sums[present][split] / members[present][split]
    return Reference(t, float(np.mean(x <= t)), lo, hi, h)


def exact_density(unique, counts, h):
    def f(points):
        points = np.atleast_1d(points)
        parts = np.array_split(points, max(points.size // 500, 1))
        return np.concatenate(
            [np.exp(-0.5 * ((part[:, None] - unique) / h) ** 2) @ counts for part in parts]
        ) / (counts.sum() * h * np.sqrt(2 * np.pi))

    return f


def binned_density(unique, counts, h, cells=1 << 22):
    """Linear binning on 2^22 cells, convolved by FFT in float64."""
    low, width = unique[0] - 10 * h, (unique[-1] - unique[0] + 20 * h) / cells
    place = (unique - low) / width
    left = place.astype(np.int64)
    share = place - left
    grid = np.bincount(left, counts * (1 - share), cells)
    grid += np.bincount(left + 1, counts * share, cells)
    angle = 2 * np.pi * np.arange(cells // 2 + 1) / cells
    smooth = fft.irfft(fft.rfft(grid) * np.exp(-0.5 * (angle * h / width) ** 2), cells)
    smooth = np.maximum(smooth, 0) / (counts.sum() * width)
    nodes = low + width * np.arange(cells)
    return lambda points: np.interp(points, nodes, smooth)


def level_of(f, counts, wanted):
    """The largest level that leaves at least `wanted` members in the region."""
    order = np.argsort(-f, kind="stable")
    return f[order][np.searchsorted(np.cumsum(counts[order]), wanted)]


def crossing(f, level, unique, inside, outside):
    """Where f falls below `level` between a point inside and its neighbour outside."""
    if not 0 <= outside < unique.size:
        return unique[inside]
    path = np.linspace(unique[inside], unique[outside], 100)
    last = np.flatnonzero(f(path) >= level)[-1]
    a, b = path[last], path[min(last + 1, 99)]
    for _ in range(60):
        middle = (a + b) / 2
        a, b = (middle, b) if f(middle)[()] >= level else (a, middle)
    return a


def otsu(shares, means):
    """Index of the last group of the lower class; None where there is no split."""
    best, least = None, np.inf
    for k in range(1, shares.size):
        within = 0.0
        for p, m in ((shares[:k], means[:k]), (shares[k:], means[k:])):
            within += p @ (m - p @ m / p.sum()) ** 2
        if within < least:
            best, least = k - 1, within
    return best

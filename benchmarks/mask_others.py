"""The paper's threshold by other means: SciPy, KDEpy, jax.scipy, each with scikit-image's Otsu.

    python -m benchmarks.mask_others [--sizes 100000,1000000] [--repeats 3] [--json FILE]

Every way gets the same float32 gradients (lognormal, sigma 2), already in memory, and gives a
mask: density on a grid, the region of highest density that holds 95 %, 300 bins, Otsu, compare.
The others' grids are linear, of 1,000 points: too coarse for so heavy a tail, so that only the time
is compared. All use free memory again, as in `train.py` (`models.reuse_host_memory`); without that,
pages that are new each time are about half of what ours takes. `gaussian_kde` costs gradients times
points: with more gradients than `--most` it is not run, its time is that of the largest size that
was, times the ratio of the sizes, and is marked "~". The ways take turns; medians.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import gaussian_kde as jax_kde
from KDEpy import FFTKDE
from scipy.stats import gaussian_kde
from skimage.filters import threshold_otsu

import models
import pb_jax
from benchmarks import command
from benchmarks.rows import Rows
from pb_jax.program import run

POINTS, BINS, COVERAGE = 1000, 300, 0.95
SIZES = "100000,1000000,10000000,20000000"
COLUMNS = ("gradients", "way", "seconds", "extrapolated_from")
Way = Callable[[Any], Any]


def ours() -> Way:
    """One jitted program; compiled before."""
    rule = jax.jit(lambda grads: pb_jax.kde_otsu()(grads).mask)
    return lambda grads: jax.block_until_ready(rule(grads))


def by(density: Callable[[np.ndarray, np.ndarray], Any]) -> Way:
    """The other ways differ in the density alone."""

    def mask(grads: np.ndarray) -> np.ndarray:
        x = np.abs(grads)
        grid = np.linspace(float(x.min()), float(x.max()), POINTS)
        f = density(x, grid)
        order = np.argsort(f)[::-1]
        held = np.cumsum(f[order]) / f.sum()
        inside = grid[order[: np.searchsorted(held, COVERAGE) + 1]]
        region = x[(x >= inside.min()) & (x <= inside.max())]
        return x > threshold_otsu(region, nbins=BINS)

    return mask


def with_scipy(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """`scipy.stats.gaussian_kde`."""
    return gaussian_kde(x)(grid)


def with_kdepy(x: np.ndarray, grid: np.ndarray) -> Any:
    """`KDEpy.FFTKDE` with the same bandwidth; its grid must enclose the data."""
    width = x.size ** (-1 / 5) * float(x.std(ddof=1))
    wide = np.linspace(grid[0] - 1e-3 * width, grid[-1] + 1e-3 * width, grid.size)
    return FFTKDE(kernel="gaussian", bw=width).fit(x).evaluate(wide)


def with_jax(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """`jax.scipy.stats.gaussian_kde`, as it is called: it compiles what it is made of."""
    return np.asarray(jax_kde(jnp.asarray(x))(jnp.asarray(grid)))


WAYS: dict[str, tuple[Way, bool]] = {
    "pb_jax": (ours(), False),
    "KDEpy + skimage": (by(with_kdepy), False),
    "scipy + skimage": (by(with_scipy), True),
    "jax.scipy + skimage": (by(with_jax), True),
}
"""By name: the way, and whether it takes time in proportion to gradients times points."""


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    parser.add_argument("--sizes", type=command.numbers, default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=1_000_000, help="gradients for gaussian_kde")
    arguments = parser.parse_args()
    models.reuse_host_memory()

    rows = Rows(arguments.json, COLUMNS)
    last: dict[str, tuple[int, float]] = {}
    rng = np.random.default_rng(0)
    print(f"{'gradients':>11} {'way':20} {'seconds':>10} {'times ours':>11}")
    for size in sorted(map(int, arguments.sizes)):
        grads = np.exp(2 * rng.standard_normal(size, np.float32) - 7)
        device = jnp.asarray(grads)
        given = {name: device if name == "pb_jax" else grads for name in WAYS}
        tried = {n: w for n, (w, slow) in WAYS.items() if not slow or size <= arguments.most}
        times: dict[str, list[float]] = {name: [] for name in tried}
        for turn in range(arguments.repeats + 1):
            for name, way in tried.items():
                start = time.perf_counter()
                way(given[name])
                if turn:
                    times[name].append(time.perf_counter() - start)
        for name in WAYS:
            if name in tried:
                last[name] = (size, statistics.median(times[name]))
            measured, seconds = last[name]
            seconds *= size / measured
            rows.add((size, name, seconds, None if measured == size else measured))
            mark = " " if measured == size else "~"
            ratio = seconds / last["pb_jax"][1]
            print(f"{size:11,} {name:20} {mark}{seconds:9.3f} {ratio:11.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""Gaussian kernel density of the gradient magnitudes, and its region of highest density."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Region(NamedTuple):
    """Highest-density region, in units of cells: cell i reaches from i to i + 1.

    Attributes:
        low: scalar, left end of the smallest interval that holds the region.
        high: scalar, right end.
        first: int32 scalar, the cell in which the left end lies.
        last: int32 scalar, the cell in which the right end lies.
        partial: bool scalar, whether the region needs a part of these cells' members.
    """

    low: Array
    high: Array
    first: Array
    last: Array
    partial: Array


def grid_cells(total: int) -> int:
    """Cells of the fine grid for `total` values: a power of two from 2^15 to 2^19.

    A value lies at most sqrt(n) standard deviations out, so with Scott's bandwidth the range holds
    at most n^0.7 bandwidths. Eight cells for each of them (four at n = 2e7) resolve the kernel.

    >>> grid_cells(50), grid_cells(79_214), grid_cells(20_040_522)
    (32768, 32768, 524288)
    """
    wanted = max(int(8 * total**0.7), 1)
    return min(max(1 << (wanted - 1).bit_length(), 1 << 15), 1 << 19)


def bandwidth(counts: Array, method: str) -> Array:
    """Bandwidth in cells after Scott, n^(-1/5) σ, or Silverman, (3n/4)^(-1/5) σ.

    Args:
        counts: int32 (cells,), the histogram of the sample.
        method: "scott" or "silverman".

    Returns:
        Scalar; σ is the sample standard deviation.

    >>> counts = jnp.zeros(100, jnp.int32).at[jnp.array([10, 20, 30])].set(1)
    >>> round(float(bandwidth(counts, "scott")), 3)  # 10 * 3 ** -0.2
    8.027
    """
    weights = counts.astype(jnp.float32)
    n = jnp.sum(counts, dtype=jnp.int32).astype(jnp.float32)
    place = jnp.arange(counts.size, dtype=jnp.float32)
    mean = jnp.sum(weights * place) / n
    deviation = jnp.sqrt(jnp.sum(weights * (place - mean) ** 2) / (n - 1))
    return deviation * (n * {"scott": 1.0, "silverman": 0.75}[method]) ** -0.2


def density_at_edges(counts: Array, width: Array) -> Array:
    """Kernel density at the cells' edges, by FFT.

    Args:
        counts: int32 (cells,), an even number of them.
        width: scalar bandwidth in cells, at least 1 and at most half the number of cells.

    Returns:
        float32 (cells + 1,): sample members a cell. Divide by n and the cell's width for a density.

    >>> counts = jnp.zeros(64, jnp.int32).at[31].set(1)
    >>> density = density_at_edges(counts, jnp.array(4.0))
    >>> peak = jnp.exp(-0.5 / 8**2) / (4 * jnp.sqrt(2 * jnp.pi))  # half a cell off the middle
    >>> bool(jnp.allclose(density[31:33], peak, rtol=3e-3))
    True
    """
    cells = counts.size
    padded = 2 * cells
    # Kernels of up to an eighth of the range do not reach round this circle (8 σ). A wider one is
    # so smooth that every second edge will do, on cells of twice the width: the circle then has
    # four times the range.
    wide = width > cells / 8
    width = jnp.where(wide, width / 2, width)
    members = counts.astype(jnp.float32)
    pairs = jnp.pad(members[::2] + members[1::2], (0, cells - cells // 2))
    angle = 2 * jnp.pi / padded * jnp.arange(cells + 1, dtype=jnp.float32)
    # A cell has spread its members over its own width already: variance 1/12.
    variance = jnp.maximum(width**2 - 1 / 12, 0.5)
    kernel = jnp.exp(-0.5 * variance * angle**2)
    # Turned by half a cell: from the cells' centres to their edges.
    kernel = jax.lax.complex(kernel * jnp.cos(angle / 2), -kernel * jnp.sin(angle / 2))
    transformed = jnp.fft.rfft(jnp.where(wide, pairs, members), padded) * kernel
    density = jnp.maximum(jnp.fft.irfft(transformed, padded)[: cells + 1], 0)
    every_second = density[: cells // 2 + 1] / 2
    between = (every_second[:-1] + every_second[1:]) / 2
    smooth = jnp.zeros(cells + 1).at[::2].set(every_second).at[1::2].set(between)
    return jnp.where(wide, smooth, density)


def highest_density_region(counts: Array, density: Array, wanted: Array) -> Region:
    """The smallest interval around the region of highest density that holds `wanted` members.

    The region is where the density reaches a level c, with the largest c for which the region holds
    at least `wanted` members; inside a cell, members are taken as spread evenly and the density as
    linear (Hyndman, "Computing and Graphing Highest Density Regions", 1996).

    Args:
        counts: int32 (cells,), the histogram of the sample.
        density: float32 (cells + 1,), the density at the cells' edges.
        wanted: int32 scalar, from 1 to the number of members.

    Returns:
        A `Region` in cells.

    >>> counts = jnp.array([1, 1, 8, 1])
    >>> density = jnp.array([1.0, 2.0, 8.0, 6.0, 0.0])
    >>> region = highest_density_region(counts, density, jnp.array(8))
    >>> round(float(region.low), 2), round(float(region.high), 2)
    (1.68, 2.96)
    """
    weights = counts.astype(jnp.float32)
    left, right = density[:-1], density[1:]
    least, most = jnp.minimum(left, right), jnp.maximum(left, right)

    def members(level: Array) -> Array:
        whole = jnp.sum(jnp.where(least >= level, counts, 0), dtype=jnp.int32)
        partly = (least < level) & (most >= level)
        share = jnp.where(partly, (most - level) / jnp.where(partly, most - least, 1.0), 0.0)
        return whole + jnp.sum(share * weights).astype(jnp.int32)

    def as_float(pattern: Array) -> Array:
        return jax.lax.bitcast_convert_type(pattern, jnp.float32)

    def halve(_, bounds):  # on bit patterns, which for floats >= 0 have the order of the values
        low, high = bounds
        middle = low + (high - low + 1) // 2
        enough = members(as_float(middle)) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    top = jax.lax.bitcast_convert_type(jnp.max(density), jnp.int32)
    level = as_float(jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(top), top))[0])

    inside = most >= level
    first = jnp.argmax(inside)
    last = counts.size - 1 - jnp.argmax(inside[::-1])

    def crossing(cell: Array) -> Array:
        rise = right[cell] - left[cell]
        part = jnp.clip((level - left[cell]) / jnp.where(rise == 0, 1.0, rise), 0, 1)
        return cell.astype(jnp.float32) + part

    low = jnp.where(left[first] >= level, first.astype(jnp.float32), crossing(first))
    high = jnp.where(right[last] >= level, last.astype(jnp.float32) + 1, crossing(last))
    # An end on the edge between two cells belongs to the cell inside the region.
    first = jnp.minimum(jnp.floor(low).astype(jnp.int32), counts.size - 1)
    last = jnp.maximum(jnp.ceil(high).astype(jnp.int32) - 1, 0)
    whole = jnp.sum(jnp.where(least >= level, counts, 0), dtype=jnp.int32)
    return Region(low, high, first, last, whole < wanted)

"""One look at all magnitudes of a pytree: every statistic is a sum, a minimum or a maximum.

Each pass visits leaf after leaf and combines what it finds, so nothing is concatenated or copied to
the host. Counts are int32: float32 counters stop at 16,777,216. As integer sums do not depend on
their order, every result is the same to the bit however the weights are permuted or split.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MAX_TOTAL = 2**31 - 1  # what an int32 counter holds
_DIGIT = 11  # bits: a histogram of 2048 counters stays in the fastest cache
_SMALL = 1 << 14  # a leaf with fewer weights is not worth a pass of its own,
_FEW = 32  # where there are more of them than these;
_PIECE = 1 << 18  # weights that are put end to end at most


class Counts(NamedTuple):
    """How many magnitudes there are, and their extent.

    Attributes:
        total: number of values, a Python int.
        zero: int32 scalar, values equal to zero.
        nonfinite: int32 scalar, NaN or infinite values.
        usable: int32 scalar, the rest.
        low: scalar, the smallest usable value (+inf where there is none).
        high: scalar, the largest usable value (-inf where there is none).
    """

    total: int
    zero: Array
    nonfinite: Array
    usable: Array
    low: Array
    high: Array


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf holds floating-point or complex numbers: only those are trained.

    >>> is_inexact(jnp.ones(2)), is_inexact(jnp.arange(2))
    (True, False)
    """
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def magnitudes(tree: Any) -> list[Array]:
    """Absolute values of all floating-point leaves, in float32 (float64 where a leaf has it).

    >>> magnitudes({"a": jnp.array([-2.0, 1.0], jnp.bfloat16), "step": jnp.array(3)})
    [Array([2., 1.], dtype=float32)]
    """
    values = [jnp.abs(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    dtype = jnp.float64 if any(value.dtype == jnp.float64 for value in values) else jnp.float32
    total = sum(value.size for value in values)
    if total > MAX_TOTAL:
        raise ValueError(f"the tree has {total} weights; at most {MAX_TOTAL} can be counted")
    return [value.astype(dtype) for value in values]


def joined(values: Sequence[Array]) -> list[Array]:
    """The same numbers in fewer arrays, for statistics: many small leaves are put end to end.

    A program's size, and the time to compile it, grow with the number of arrays. A network of 330
    leaves has 300 small ones; they go into a few pieces of limited size, large ones stay as they
    are, and so does a tree with few leaves.

    >>> [x.shape for x in joined([jnp.ones(3), *[jnp.ones((2, 2))] * 40, jnp.ones((200, 100))])]
    [(200, 100), (163,)]
    """
    small = [value.ravel() for value in values if value.size < _SMALL]
    if len(small) <= _FEW:
        return list(values)
    pieces: list[list[Array]] = [[]]
    for value in small:
        if sum(member.size for member in pieces[-1]) + value.size > _PIECE:
            pieces.append([])
        pieces[-1].append(value)
    large = [value for value in values if value.size >= _SMALL]
    return [*large, *(jnp.concatenate(piece) for piece in pieces)]


def count(values: Sequence[Array]) -> Counts:
    """Count and bound the magnitudes `values` in one pass.

    >>> c = count([jnp.array([0.0, 3.0, 1.0, jnp.nan])])
    >>> c.total, int(c.zero), int(c.nonfinite), int(c.usable), float(c.low), float(c.high)
    (4, 1, 1, 2, 1.0, 3.0)
    """
    total = sum(value.size for value in values)
    zero = total_of(jnp.sum(value == 0, dtype=jnp.int32) for value in values)
    nonfinite = total_of(jnp.sum(~jnp.isfinite(value), dtype=jnp.int32) for value in values)
    zero, nonfinite = settled(zero, nonfinite)
    low, high = extent(values, [usable(value) for value in values])
    return Counts(total, zero, nonfinite, total - zero - nonfinite, low, high)


def usable(value: Array) -> Array:
    """Where a magnitude counts in the estimate: finite and not zero.

    >>> usable(jnp.array([0.0, 1.0, jnp.inf]))
    Array([False,  True, False], dtype=bool)
    """
    return (value > 0) & (value < jnp.inf)


def extent(values: Sequence[Array], members: Sequence[Array]) -> tuple[Array, Array]:
    """Smallest and largest of the `values` where `members` is true; (inf, -inf) for none.

    >>> low, high = extent([jnp.array([1.0, 5.0, 9.0])], [jnp.array([True, True, False])])
    >>> float(low), float(high)
    (1.0, 5.0)
    """
    dtype = values[0].dtype if values else jnp.float32
    pairs = [(v, m) for v, m in zip(values, members, strict=True) if v.size]
    low = [jnp.min(jnp.where(member, value, jnp.inf)) for value, member in pairs]
    high = [jnp.max(jnp.where(member, value, -jnp.inf)) for value, member in pairs]
    ends = settled(
        jnp.min(jnp.stack([*low, jnp.array(jnp.inf, dtype)])),
        jnp.max(jnp.stack([*high, jnp.array(-jnp.inf, dtype)])),
    )
    return ends[0], ends[1]


def cell_of(value: Array, low: Array | float, high: Array | float, cells: int) -> Array:
    """The cell, 0 to cells - 1, of each value on a grid from `low` to `high`; int32.

    >>> cell_of(jnp.array([0.0, 0.5, 1.0]), 0.0, 1.0, 4)
    Array([0, 2, 3], dtype=int32)
    """
    # Dividing first keeps the product finite for any scale of the gradients.
    position = (value - low) / (high - low) * cells
    return jnp.clip(position.astype(jnp.int32), 0, cells - 1)


def histogram(
    values: Sequence[Array], low: Array | float, high: Array | float, cells: int
) -> Array:
    """Count the usable magnitudes in [low, high] on `cells` equal cells; int32 of shape (cells,).

    >>> histogram([jnp.array([0.0, 1.0, 2.0, 3.0, 9.0])], 1.0, 3.0, 4)
    Array([1, 0, 1, 1], dtype=int32)
    """
    counts = jnp.zeros(cells, jnp.int32)
    for value in values:
        member = usable(value) & (value >= low) & (value <= high)
        cell = jnp.where(member, cell_of(value, low, high, cells), cells)
        counts = counts.at[cell.ravel()].add(1, mode="drop")
    return counts


def smallest(values: Sequence[Array], rank: int) -> Array:
    """The `rank`-th smallest (from 1) of the non-negative `values`, exactly; NaN for rank 0.

    Selects digit by digit of the bit patterns, which for non-negative floats have the order of the
    values. Non-finite values rank last and are never returned: where only they are left, the
    largest finite value is.

    >>> float(smallest([jnp.array([5.0, 1.0]), jnp.array([3.0])], 2))
    3.0
    """
    if rank < 1 or not values:
        return jnp.array(jnp.nan)
    return _ranked(values, jnp.array(rank, jnp.int32))


def largest(values: Sequence[Array], rank: int) -> Array:
    """The `rank`-th largest (from 1) of the finite, non-negative `values`; NaN for rank 0.

    Where there are fewer finite values, the smallest of them.

    >>> float(largest([jnp.array([5.0, 1.0]), jnp.array([3.0, jnp.inf])], 2))
    3.0
    """
    if rank < 1 or not values:
        return jnp.array(jnp.nan)
    finite = total_of(jnp.sum(jnp.isfinite(value), dtype=jnp.int32) for value in values)
    return _ranked(values, jnp.maximum(finite - rank + 1, 1))


def _ranked(values: Sequence[Array], rank: Array) -> Array:
    dtype = values[0].dtype
    whole = jnp.int64 if dtype == jnp.float64 else jnp.int32
    patterns = [
        jax.lax.bitcast_convert_type(jnp.nan_to_num(value, nan=jnp.inf, posinf=jnp.inf), whole)
        for value in values
    ]
    remaining, found = rank, jnp.zeros((), whole)
    shift = jnp.iinfo(whole).bits - 1
    while shift:
        digit = min(shift, _DIGIT)
        counts = jnp.zeros(1 << digit, jnp.int32)
        for pattern in patterns:
            same = (pattern >> shift) == found if shift < jnp.iinfo(whole).bits - 1 else True
            place = (pattern >> (shift - digit)) & ((1 << digit) - 1)
            place = jnp.where(same, place, 1 << digit).astype(jnp.int32)
            counts = counts.at[place.ravel()].add(1, mode="drop")
        upto = jnp.cumsum(counts)
        place = jnp.argmax(upto >= remaining)
        remaining = remaining - (upto[place] - counts[place])
        (found,) = settled((found << digit) | place.astype(whole))
        shift -= digit
    limit = extent(values, [jnp.isfinite(value) for value in values])[1]
    return jnp.minimum(jax.lax.bitcast_convert_type(found, dtype), limit)


def mean(values: Sequence[Array]) -> Array:
    """Mean of the usable magnitudes; NaN where there is none.

    Summed along each leaf's last axis first, so that millions of values keep their digits, and in
    units of the largest, so that none overflows.

    >>> float(mean([jnp.array([0.0, 1.0]), jnp.array([[2.0, jnp.inf]])]))
    1.5
    """
    counts = count(values)
    share = jnp.zeros((), counts.high.dtype)
    for value in values:
        scaled = jnp.where(usable(value), value / counts.high, 0)
        share += jnp.sum(jnp.sum(scaled.reshape(-1, max(value.shape[-1:], default=1)), -1))
    # Rounding must not put the mean of equal values below them.
    return jnp.clip(
        share / counts.usable.astype(share.dtype) * counts.high, counts.low, counts.high
    )


def settled(*values: Array) -> list[Array]:
    """The same arrays, of one shape and dtype, computed once.

    XLA copies the cheap arithmetic behind a scalar into every user. Here each leaf is a user: the
    program would grow with the square of their number. It does not copy a sort.

    >>> [float(x) for x in settled(jnp.array(3.0), jnp.array(1.0))]
    [3.0, 1.0]
    """
    stacked = jnp.stack(values)
    order = jax.lax.broadcasted_iota(jnp.int32, stacked.shape, 0)
    return list(jax.lax.sort((order, stacked), dimension=0)[1])


def total_of(parts: Iterable[Array]) -> Array:
    """Sum of int32 scalars, an int32 zero for none.

    >>> total_of([])
    Array(0, dtype=int32)
    """
    return jnp.sum(jnp.stack([*parts, jnp.zeros((), jnp.int32)]), dtype=jnp.int32)

"""One look at all magnitudes of a pytree: every statistic is a sum, a minimum or a maximum.

Each pass visits leaf after leaf and combines what it finds, so nothing is concatenated or copied to
the host, or between devices; a single accelerator, though, sorts all of them first. Counts are
int32: float32 counters stop at 16,777,216. As integer sums do not depend on their order, every
result is the same to the bit however the weights are permuted, cut into leaves or split over
devices, and whether they are sorted.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from pb_jax.sharding import mesh_of

MAX_TOTAL = 2**31 - 1  # what an int32 counter holds
_DIGIT = 11  # bits: a histogram of 2048 counters stays in the fastest cache
_SMALL = 1 << 14  # a leaf with fewer weights is not worth a pass of its own,
_FEW = 32  # where there are more of them than these;
_PIECE = 1 << 18  # weights that are put end to end at most
_IN_CACHE = 1 << 19  # weights that are looked at together on a CPU
_SORTED = 1 << 27  # weights that are sorted at most: that takes three times their memory
_FIXED = 18  # bits: so many of 8,191 numbers can be added in one go


State = TypeVar("State")


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

    Numbers too small to be normal are zeros. Some of XLA's programs take them for such by
    themselves, and some do not, which would make masks depend on the program.

    >>> magnitudes({"a": jnp.array([-2.0, 1.0], jnp.bfloat16), "step": jnp.array(3)})
    [Array([2., 1.], dtype=float32)]
    """
    values = [jnp.abs(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    dtype = jnp.float64 if any(value.dtype == jnp.float64 for value in values) else jnp.float32
    total = sum(value.size for value in values)
    if total > MAX_TOTAL:
        raise ValueError(f"the tree has {total} weights; at most {MAX_TOTAL} can be counted")
    tiny = jnp.finfo(dtype).tiny
    values = [value.astype(dtype) for value in values]
    return [jnp.where(value < tiny, jnp.zeros((), dtype), value) for value in values]


def fewer(values: Sequence[Array]) -> list[Array]:
    """The same numbers in fewer arrays, for statistics: many small leaves are put end to end.

    A program's size, and the time to compile it, grow with the number of arrays. A network of 330
    leaves has 300 small ones; they go into a few pieces of limited size, large ones stay as they
    are, and so does a tree with few leaves, or one that lies on several devices, which would have
    to exchange the pieces.

    >>> [x.shape for x in fewer([jnp.ones(3), *[jnp.ones((2, 2))] * 40, jnp.ones((200, 100))])]
    [(200, 100), (163,)]
    """
    small = [value.ravel() for value in values if value.size < _SMALL]
    if len(small) <= _FEW or mesh_of(values):
        return list(values)
    pieces: list[list[Array]] = [[]]
    for value in small:
        if sum(member.size for member in pieces[-1]) + value.size > _PIECE:
            pieces.append([])
        pieces[-1].append(value)
    large = [value for value in values if value.size >= _SMALL]
    return [*large, *(jnp.concatenate(piece) for piece in pieces)]


def either_way(
    by_passes: Callable[..., State], in_order: Callable[..., State], values: Any, *others: Any
) -> State:
    """`by_passes(values, *others)` on a CPU, `in_order(values, *others)` elsewhere.

    An accelerator sorts all weights in less time than it counts them: counters wait for each other
    where many weights are alike. Not so where there are very many weights, or where they lie on
    several devices.

    Args:
        by_passes: a pure function of arrays.
        in_order: another with the same results, to the bit.
        values: pytree of arrays: what is counted or sorted.
        *others: more arguments, arrays or pytrees of them.

    >>> int(either_way(lambda x, y: x + y, lambda x, y: y + x, jnp.array(1), jnp.array(2)))
    3
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(values))
    sortable = 0 < total <= _SORTED and not mesh_of(values)
    if jax.default_backend() == "cpu" or not sortable:
        return by_passes(values, *others)
    return lax.platform_dependent(values, *others, cpu=by_passes, default=in_order)


def ordered(values: Sequence[Array]) -> list[Array]:
    """The same numbers in one array of one axis, sorted, NaN at the end.

    >>> ordered([jnp.array([3.0, jnp.nan]), jnp.array([[1.0, jnp.inf]])])
    [Array([ 1.,  3., inf, nan], dtype=float32)]
    """
    return [jnp.sort(jnp.concatenate([value.ravel() for value in values]))]


def fold(step: Callable[[State, Array], State], start: State, values: Sequence[Array]) -> State:
    """`step(state, value)` for one array after the other, beginning with the state `start`.

    On a CPU, arrays too large for its cache come in pieces, of one axis: what the step makes of a
    whole array would be written to memory and read again, in buffers as large as the gradients.
    Elsewhere XLA makes one kernel of it, and where an array is split over devices each has its
    part already.

    >>> int(fold(lambda total, value: total + value.sum(), 0, [jnp.arange(3), jnp.arange(4)]))
    9
    """
    for value in values:
        if value.size <= _IN_CACHE or mesh_of(value):
            start = step(start, value)
        else:
            pieces = functools.partial(_in_pieces, step)
            start = lax.platform_dependent(start, value, cpu=pieces, default=step)
    return start


def _in_pieces(step: Callable[[State, Array], State], state: State, value: Array) -> State:
    value = value.ravel()
    further = (value.size - 1) // _IN_CACHE
    begin = value.size - further * _IN_CACHE
    # Before the loop, whose state keeps its type: within `shard_map` the first step changes it.
    state = step(state, value[:begin])

    def go_on(index: Array, state: State) -> State:
        return step(state, lax.dynamic_slice(value, (begin + index * _IN_CACHE,), (_IN_CACHE,)))

    return lax.fori_loop(0, further, go_on, state)


def count(values: Sequence[Array]) -> Counts:
    """Count and bound the magnitudes `values` in one pass.

    >>> c = count([jnp.array([0.0, 3.0, 1.0, jnp.nan])])
    >>> c.total, int(c.zero), int(c.nonfinite), int(c.usable), float(c.low), float(c.high)
    (4, 1, 1, 2, 1.0, 3.0)
    """
    total = sum(value.size for value in values)

    def step(state: tuple[Array, ...], value: Array) -> tuple[Array, ...]:
        zero, nonfinite, *ends = state
        zero += jnp.sum(value == 0, dtype=jnp.int32)
        nonfinite += jnp.sum(~(value < jnp.inf), dtype=jnp.int32)
        return zero, nonfinite, *_widened(ends, value, usable(value))

    none = jnp.zeros((), jnp.int32)
    zero, nonfinite, low, high = fold(step, (none, none, *_nothing(values)), values)
    zero, nonfinite = settled(zero, nonfinite)
    low, high = settled(low, high)
    return Counts(total, zero, nonfinite, total - zero - nonfinite, low, high)


def usable(value: Array) -> Array:
    """Where a magnitude counts in the estimate: finite and not zero.

    >>> usable(jnp.array([0.0, 1.0, jnp.inf]))
    Array([False,  True, False], dtype=bool)
    """
    return (value > 0) & (value < jnp.inf)


def extent(values: Sequence[Array], member: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Smallest and largest of the `values` for which `member` is true; (inf, -inf) for none.

    >>> low, high = extent([jnp.array([1.0, 5.0, 9.0])], lambda value: value < 6)
    >>> float(low), float(high)
    (1.0, 5.0)
    """
    ends = fold(lambda ends, value: _widened(ends, value, member(value)), _nothing(values), values)
    low, high = settled(*ends)
    return low, high


def _nothing(values: Sequence[Array]) -> tuple[Array, Array]:
    """The extent of none of the values."""
    dtype = values[0].dtype if values else jnp.float32
    return jnp.array(jnp.inf, dtype), jnp.array(-jnp.inf, dtype)


def _widened(ends: Sequence[Array], value: Array, member: Array) -> tuple[Array, Array]:
    """An extent with those entries of `value` that are members."""
    low = jnp.min(jnp.where(member, value, jnp.inf), initial=jnp.inf)
    high = jnp.max(jnp.where(member, value, -jnp.inf), initial=-jnp.inf)
    return jnp.minimum(ends[0], low), jnp.maximum(ends[1], high)


class Grid(NamedTuple):
    """Equal cells from `low` to `high`; several grids where these are arrays.

    Attributes:
        low: where the first cell begins.
        high: where the last one ends.
        cells: how many there are.
        scale: a power of two; together with `rest`, cells for a unit.
        rest: the other factor.
    """

    low: Array
    high: Array
    cells: int
    scale: Array
    rest: Array

    def at(self, index: int) -> "Grid":
        """One of several grids."""
        return Grid(
            self.low[index], self.high[index], self.cells, self.scale[index], self.rest[index]
        )

    def cell(self, value: Array) -> Array:
        """The cell, 0 to cells - 1, of each value; int32.

        >>> grid(jnp.array(0.0), jnp.array(1.0), 4).cell(jnp.array([0.0, 0.5, 1.0]))
        Array([0, 2, 3], dtype=int32)
        """
        # Not divided: XLA multiplies by reciprocals in some programs and divides in others.
        position = (value - self.low) * self.scale * self.rest
        return jnp.clip(position.astype(jnp.int32), 0, self.cells - 1)

    def holds(self, value: Array) -> Array:
        """Where a value is usable and on the grid."""
        return usable(value) & (value >= self.low) & (value <= self.high)


def grid(low: Array, high: Array, cells: int) -> Grid:
    """The `Grid` with so many cells, for ends of any scale."""
    unit, back = powers(-jnp.frexp(high - low)[1], low.dtype)
    rest = cells / ((high - low) * unit * back)
    low, high, unit, rest = settled(low, high, unit, back * rest)
    return Grid(low, high, cells, unit, rest)


def histogram(values: Sequence[Array], grid: Grid) -> Array:
    """Count the usable magnitudes on a grid, its ends included; int32 of shape (cells,).

    >>> one_to_three = grid(jnp.array(1.0), jnp.array(3.0), 4)
    >>> histogram([jnp.array([0.0, 1.0, 2.0, 3.0, 9.0])], one_to_three)
    Array([1, 0, 1, 1], dtype=int32)
    """
    return _frequencies(values, grid.cells, lambda value: (grid.cell(value), grid.holds(value)))


def histogram_in_order(values: Sequence[Array], grid: Grid) -> Array:
    """`histogram` of what is `ordered`: int32 of shape (cells,).

    >>> one_to_three = grid(jnp.array(1.0), jnp.array(3.0), 4)
    >>> histogram_in_order([jnp.array([0.0, 1.0, 2.0, 3.0, 9.0])], one_to_three)
    Array([1, 0, 1, 1], dtype=int32)
    """
    (value,) = values
    outside = jnp.where(value <= grid.high, -1, grid.cells)
    cell = jnp.where(grid.holds(value), grid.cell(value), outside)
    upto = jnp.searchsorted(cell, jnp.arange(grid.cells + 1), method="scan_unrolled")
    return jnp.diff(upto).astype(jnp.int32)


def _frequencies(
    values: Sequence[Array], cells: int, place: Callable[[Array], tuple[Array, Array]]
) -> Array:
    """How many entries are in each cell, by the int32 cell of each and whether it is in any."""
    # On a CPU those in no cell are counted too, which is faster than to ask for each; elsewhere
    # they would wait for each other, and are left out by an index beyond the end.
    outside = lax.platform_dependent(cpu=lambda: cells, default=lambda: cells + 1)

    def step(counts: Array, value: Array) -> Array:
        cell, inside = place(value)
        return counts.at[jnp.where(inside, cell, outside)].add(1, mode="drop")

    return fold(step, jnp.zeros(cells + 1, jnp.int32), values)[:cells]


def extents_of_cells(
    values: Sequence[Array], grid: Grid, *firsts: Array, cells: int = 1
) -> list[tuple[Array, Array]]:
    """The extents of the usable magnitudes in `cells` cells of a grid, from each of `firsts` on.

    >>> halves = grid(jnp.array(0.0), jnp.array(2.0), 4)
    >>> extents = extents_of_cells([jnp.array([0.5, 0.75, 1.0])], halves, jnp.array(1))
    >>> [(float(low), float(high)) for low, high in extents]
    [(0.5, 0.75)]
    """

    def step(ends: list[tuple[Array, Array]], value: Array) -> list[tuple[Array, Array]]:
        # Or else XLA computes the cell again for each of the ends.
        cell = lax.optimization_barrier(jnp.where(grid.holds(value), grid.cell(value), -1))
        members = [(cell >= first) & (cell < first + cells) for first in firsts]
        return [_widened(e, value, member) for e, member in zip(ends, members, strict=True)]

    ends = fold(step, [_nothing(values)] * len(firsts), values)
    return [(low, high) for low, high in (settled(*pair) for pair in ends)]


def smallest(values: Sequence[Array], rank: int) -> Array:
    """The `rank`-th smallest (from 1) of the non-negative `values`, exactly; NaN for rank 0.

    Selects digit by digit of the bit patterns, which for non-negative floats have the order of the
    values. Non-finite values rank last and are never returned: where only they are left, the
    largest finite value is, or NaN if there is none.

    >>> float(smallest([jnp.array([5.0, 1.0]), jnp.array([3.0])], 2))
    3.0
    """
    if rank < 1 or not values:
        return jnp.array(jnp.nan)
    return _ranked(values, jnp.array(rank, jnp.int32))


def largest(values: Sequence[Array], rank: int) -> Array:
    """The `rank`-th largest (from 1) of the finite, non-negative `values`; NaN for rank 0.

    Where there are fewer finite values, the smallest of them, or NaN if there is none.

    >>> float(largest([jnp.array([5.0, 1.0]), jnp.array([3.0, jnp.inf])], 2))
    3.0
    """
    if rank < 1 or not values:
        return jnp.array(jnp.nan)
    return _ranked(values, jnp.maximum(_number(values, jnp.isfinite) - rank + 1, 1))


def _ranked(values: Sequence[Array], rank: Array) -> Array:
    return either_way(_ranked_by_digits, _ranked_in_order, values, rank)


def _ranked_in_order(values: Sequence[Array], rank: Array) -> Array:
    (value,) = ordered(values)
    return _finite(value[rank - 1], [value])


def _ranked_by_digits(values: Sequence[Array], rank: Array) -> Array:
    dtype = values[0].dtype
    whole = jnp.int64 if dtype == jnp.float64 else jnp.int32
    remaining, found = rank, jnp.zeros((), whole)
    shift = jnp.iinfo(whole).bits - 1
    while shift:
        digit = min(shift, _DIGIT)
        digits = functools.partial(_digits, found=found, shift=shift - digit, bits=digit)
        counts = _frequencies(values, 1 << digit, digits)
        upto = jnp.cumsum(counts)
        place = jnp.argmax(upto >= remaining)
        remaining = remaining - (upto[place] - counts[place])
        (found,) = settled((found << digit) | place.astype(whole))
        shift -= digit
    return _finite(lax.bitcast_convert_type(found, dtype), values)


def _finite(found: Array, values: Sequence[Array]) -> Array:
    """What is found, the largest finite value at most; NaN where there is none."""
    limit = extent(values, jnp.isfinite)[1]
    return jnp.where(limit >= 0, jnp.fmin(found, limit), jnp.nan)


def _digits(value: Array, found: Array, shift: int, bits: int) -> tuple[Array, Array]:
    """So many bits of the values' patterns, and which patterns begin with `found`."""
    pattern = jnp.where(value < jnp.inf, value, jnp.inf)  # NaN is as large as infinity
    pattern = lax.bitcast_convert_type(pattern, found.dtype) >> shift
    digit = (pattern & ((1 << bits) - 1)).astype(jnp.int32)
    return digit, (pattern >> bits) == found


def _number(values: Sequence[Array], member: Callable[[Array], Array]) -> Array:
    """For how many of the values `member` is true; int32."""

    def step(number: Array, value: Array) -> Array:
        return number + jnp.sum(member(value), dtype=jnp.int32)

    return fold(step, jnp.zeros((), jnp.int32), values)


@jax.jit
def mean(values: Sequence[Array]) -> Array:
    """Mean of the usable magnitudes; NaN where there is none.

    >>> float(mean([jnp.array([0.0, 1.0]), jnp.array([[2.0, jnp.inf]])]))
    1.5
    """
    if not values:
        return jnp.array(jnp.nan)
    number = _number(values, usable)
    low, high = extent(values, usable)
    kept = [jnp.where(usable(value), value, 0) for value in values]
    return exact_mean(kept, number, low, high)


@functools.partial(jax.jit, static_argnames="axes")
def exact_mean(
    values: Sequence[Array],
    number: Array | int,
    low: Array,
    high: Array,
    axes: tuple[int, ...] | None = None,
) -> Array:
    """Mean of magnitudes, the same to the bit in whatever order they come.

    Args:
        values: see `exact_sum`, but that they may reach up to `high`.
        number: by which their sum is divided.
        low: the smallest of them that counts. Rounding does not put the mean below it,
        high: the largest: nor above this.
        axes: see `exact_sum`.

    >>> float(exact_mean([jnp.array([1.0, 2.0])], 2, jnp.array(1.0), jnp.array(2.0)))
    1.5
    """
    dtype, exponent = values[0].dtype, jnp.frexp(high)[1]
    unit, back = settled(*powers(-exponent, dtype))
    total = exact_sum([value * unit * back for value in values], axes)
    share = total / jnp.asarray(number, dtype)
    unit, back = powers(exponent, dtype)
    return jnp.clip(share * unit * back, low, high)


def powers(exponent: Array, dtype: Any) -> tuple[Array, Array]:
    """Two powers of two whose product is 2**exponent, which itself may be out of range.

    >>> [float(x) for x in powers(jnp.array(3), jnp.float32)]
    [2.0, 4.0]
    """
    half = exponent // 2
    one = jnp.ones((), dtype)
    return jnp.ldexp(one, half), jnp.ldexp(one, exponent - half)


def exact_sum(values: Sequence[Array], axes: Sequence[int] | None = None) -> Array:
    """Sum of numbers from 0 to 1, the same to the bit in whatever order they are added.

    Their bits, 13 more than they have themselves, are added as integers.

    Args:
        values: arrays of floats, of one dtype; at least one.
        axes: along which an array, the only one, is summed; they are kept, with length 1. None:
            all axes of all arrays.

    Returns:
        A scalar, or an array where there are axes.

    >>> float(exact_sum([jnp.array([0.25, 0.75]), jnp.array(0.5)]))
    1.5
    """
    dtype = values[0].dtype
    digits = -(-(jnp.finfo(dtype).nmant + 13) // _FIXED)
    sums: dict[int, list[Array]] = {}  # of integers that count for 2**key
    for value in values:
        for position in range(1, digits + 1):
            value = value * 2.0**_FIXED
            digit = jnp.floor(value)
            value = value - digit
            over = range(value.ndim) if axes is None else axes
            for part, exponent in _parts(digit.astype(jnp.int32), _FIXED, over):
                part = jnp.squeeze(part) if axes is None else part
                sums.setdefault(exponent - _FIXED * position, []).append(part)
    # Written in digits of 16 bits, which makes one number of whatever parts it was found in.
    places: dict[int, list[Array]] = {}
    for exponent, parts in sums.items():
        place, shift = divmod(exponent, 16)
        stacked = jnp.stack(parts).astype(jnp.uint32)
        low, high = (stacked & 0xFFFF) << shift, (stacked >> 16) << shift
        halves = (low & 0xFFFF, (low >> 16) + (high & 0xFFFF), high >> 16)
        for i, half in enumerate(halves, place):
            places.setdefault(i, []).append(jnp.sum(half, 0, dtype=jnp.uint32))
    total, carry = jnp.zeros((), dtype), jnp.zeros((), jnp.uint32)
    for i in range(min(places), max(places) + 2):
        carry = sum(places.get(i, []), carry)
        total = total + (carry & 0xFFFF).astype(dtype) * 2.0 ** (16 * i)
        carry = carry >> 16
    return total


def _parts(value: Array, bits: int, axes: Sequence[int]) -> Iterator[tuple[Array, int]]:
    """Integers of so many bits summed in int32: parts of the sum, with the power of 2 of each."""
    members = itertools.accumulate((value.shape[axis] for axis in reversed(axes)), operator.mul)
    fitting = [total for total in members if bits + total.bit_length() <= 31]
    if not axes:
        yield value, 0
    elif fitting:
        total = jnp.sum(value, tuple(axes[-len(fitting) :]), dtype=jnp.int32, keepdims=True)
        bits += fitting[-1].bit_length()
        yield from _parts(total, bits, axes[: -len(fitting)])
    else:
        half = bits // 2
        yield from _parts(value & ((1 << half) - 1), half, axes)
        for part, exponent in _parts(value >> half, bits - half, axes):
            yield part, exponent + half


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

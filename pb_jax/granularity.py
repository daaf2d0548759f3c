"""Rules that judge whole output channels, or whole leaves, in place of single weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pb_jax import magnitudes as mag
from pb_jax.checks import check_choice
from pb_jax.rules import RandomRule, Rule, Selection, check_rule, on_devices
from pb_jax.sharding import alike, everywhere

GRANULARITIES = ("element", "channel", "leaf")
# Orders in which random groups are taken: the first is kept that misses the share by less than a
# thousandth of all weights, or else the nearest. All orders together hold so many groups at most.
_MOST_ORDERS = 64
_NEAR = 1000
_DRAWN_AT_MOST = 1 << 16


def by_group(rule: Rule, granularity: str = "channel") -> Rule:
    """Let a rule judge groups of weights: each group trains, or is frozen, as a whole.

    Every weight is scored by the mean magnitude of its group's gradients (of its group's weights,
    for `weight_magnitude`), and the rule sees these scores. So its shares and thresholds count
    weights, not groups: a kernel's channel of 4,608 weights counts 4,608 times what a bias does.
    The threshold and `Selection.estimate` are of the scores.

    Zero gradients belong to their group's mean, as a channel that is silent half of the time moves
    half as much; a group of zeros only has the score zero, stays out of `kde_otsu`'s estimate and
    is frozen. A group with a gradient that is not finite goes on training.

    What freezes a given share cannot cut a group in two: `quantile` and `weight_magnitude` freeze
    at least the share, up to the end of the group in which it is reached; `random` draws whole
    groups and comes near to the share: of up to 64 draws, fewer of many groups, it keeps the
    first that misses it by less than a thousandth of all weights, or else the nearest.

    Args:
        rule: a `Rule`. One of your own sees scores in place of gradients and parameters; where it
            decides otherwise for entries of one group, its decision for the first stands for all.
        granularity: "element", the rule itself; "channel", the entries with the same last index,
            which are an output channel of kernels (height, width, in, out) and (in, out), and each
            entry of a vector (bias, batch norm) by itself; or "leaf". It is the last axis for all
            arrays: a dimension of the vectors in an embedding (words, dimensions), a gate's unit in
            an LSTM's kernel.

    Returns:
        A `Rule`. Combined with a rule's `scope="leaf"`, granularity "leaf" leaves nothing to
        choose: each leaf is compared with itself.

    Raises:
        TypeError: `rule` cannot be called.
        ValueError: another granularity.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> grads = {"kernel": jnp.array([[9.0, 3.0], [1.0, 3.0]]), "bias": jnp.array([4.0, 1.0])}
        >>> mask = pb_jax.by_group(pb_jax.fixed_threshold(3.0), "channel")(grads).mask
        >>> print(mask["kernel"])
        [[ True False]
         [ True False]]
        >>> print(mask["bias"])
        [ True False]
    """
    check_choice("granularity", granularity, GRANULARITIES)
    check_rule(rule)
    if granularity == "element":
        return rule
    if isinstance(rule, RandomRule):
        return _random(rule, granularity)

    @on_devices
    def grouped(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        scored = None if params is None else _scores(params, granularity)
        selection = rule(_scores(grads, granularity), scored, key=key)

        def settle(leaf: Array) -> Array:
            axes = _axes(leaf.shape, granularity)
            first = tuple(slice(1 if axis in axes else None) for axis in range(leaf.ndim))
            return alike(jnp.broadcast_to(leaf[first], leaf.shape), leaf)

        return selection._replace(mask=jax.tree.map(settle, selection.mask))

    return grouped


def _axes(shape: tuple[int, ...], granularity: str) -> tuple[int, ...]:
    """The axes along which a leaf's entries are of one group."""
    return tuple(range(len(shape) if granularity == "leaf" else len(shape) - 1))


def _scores(tree: Any, granularity: str) -> Any:
    """The mean magnitude of each entry's group, in the place of every entry."""

    def one(leaf: Any) -> Any:
        if not mag.is_inexact(leaf) or not jnp.size(leaf):
            return leaf
        (value,) = mag.magnitudes(leaf)
        axes = _axes(value.shape, granularity)
        # Not left to the maximum of NaN, which XLA:CPU may lose, and devices that exchange theirs.
        value = jnp.where(jnp.isfinite(value), value, jnp.inf)
        low = jnp.min(value, axes, keepdims=True)
        high = jnp.max(value, axes, keepdims=True)
        members = math.prod(value.shape[axis] for axis in axes)
        mean = mag.exact_mean([value], members, low, high, axes)
        mean = jnp.where(high < jnp.inf, mean, jnp.nan)  # which is not frozen
        mean, _ = mag.settled(mean, high)  # or else it is computed again for each entry
        return alike(jnp.broadcast_to(mean, value.shape), leaf)

    return jax.tree.map(one, tree)


def _random(rule: RandomRule, granularity: str) -> Rule:
    """`random`, of whole groups."""

    @on_devices
    def grouped(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params
        key = jax.random.key(0) if key is None else key
        leaves, structure = jax.tree.flatten(grads)
        floating = [position for position, leaf in enumerate(leaves) if mag.is_inexact(leaf)]
        shapes = [jnp.shape(leaf) for leaf in leaves]
        counts = [_groups(shapes[position], granularity) for position in floating]
        sizes = [
            math.prod(shapes[position]) // max(count, 1)
            for position, count in zip(floating, counts, strict=True)
        ]
        draw = _of_all if rule.scope == "global" else _of_each
        masks = [jnp.ones(shape, bool) for shape in shapes]
        for position, frozen in zip(floating, draw(key, rule.frozen, counts, sizes), strict=True):
            shape, frozen = shapes[position], everywhere(frozen, grads)
            masks[position] = jnp.broadcast_to(~(frozen if shape else frozen[0]), shape)
        masks = [alike(mask, leaf) for mask, leaf in zip(masks, leaves, strict=True)]
        nan = jnp.array(jnp.nan, jnp.float32)
        threshold = nan if rule.scope == "global" else structure.unflatten([nan] * len(leaves))
        return Selection(structure.unflatten(masks), threshold)

    return grouped


def _groups(shape: tuple[int, ...], granularity: str) -> int:
    """How many groups a leaf has."""
    return shape[-1] if shape and granularity == "channel" else 1


def _of_all(key: Array, share: float, counts: Sequence[int], sizes: Sequence[int]) -> list[Array]:
    """Groups drawn among those of all leaves: (number of groups,) for each leaf, True is frozen."""
    sizes_of_all = np.repeat(np.array(sizes, np.int32), np.array(counts, np.int32))
    total = int(sizes_of_all.sum(dtype=np.int64))
    wanted = round(share * total)

    def draw(key: Array) -> tuple[Array, Array]:
        order = jax.random.permutation(key, sizes_of_all.size)
        taken, missed = _filled(jnp.asarray(sizes_of_all)[order], wanted)
        return jnp.zeros(sizes_of_all.size, bool).at[order].set(taken), missed

    # A few large groups miss the share in most orders.
    orders = max(1, min(_MOST_ORDERS, _DRAWN_AT_MOST // max(sizes_of_all.size, 1)))
    several, missed = jax.vmap(draw)(jax.random.split(key, orders))
    frozen = several[jnp.argmin(jnp.maximum(missed, total // _NEAR))]
    ends = np.cumsum(counts, dtype=np.int64)
    return [frozen[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _of_each(key: Array, share: float, counts: Sequence[int], sizes: Sequence[int]) -> list[Array]:
    """The same with the share taken of each leaf, whose groups are all of one size."""
    keys = jax.random.split(key, max(len(counts), 1))
    return [
        jax.random.permutation(k, count) < round(round(share * count * size) / max(size, 1))
        for k, count, size in zip(keys, counts, sizes, strict=False)
    ]


def _filled(sizes: Array, wanted: int) -> tuple[Array, Array]:
    """Take one after the other until the sizes add up to about `wanted`: which, and what it misses.

    Two ways are tried: what still fits, which small groups fill up exactly, and what brings the sum
    nearer, without which a group larger than what is wanted would never be taken. The nearer one
    is the result.

    >>> _filled(jnp.array([3, 5, 2, 2, 9]), 8)
    (Array([ True,  True, False, False, False], dtype=bool), Array(0, dtype=int32))
    >>> _filled(jnp.array([9, 1]), 7)
    (Array([ True, False], dtype=bool), Array(2, dtype=int32))
    """
    if not sizes.size:
        return jnp.zeros(0, bool), jnp.array(0, jnp.int32)
    fitting, below = _taken(sizes, wanted, lambda size, left: size <= left)
    nearing, beyond = _taken(sizes, wanted, lambda size, left: (left > 0) & (size - left < left))
    beyond = jnp.abs(beyond)
    return jnp.where(beyond <= below, nearing, fitting), jnp.minimum(beyond, below)


def _taken(
    sizes: Array, wanted: int, takes: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """What is taken where each in turn is asked whether it goes into what is left; what is left.

    The loop is over those that are passed by, not over all.
    """

    def candidates(taken: Array, left: Array) -> Array:
        return ~taken & takes(sizes, left)

    def go_on(state: tuple[Array, Array]) -> tuple[Array, Array]:
        taken, left = state
        asked = candidates(taken, left)
        theirs = jnp.where(asked, sizes, 0)
        passed = asked & ~takes(sizes, left - (jnp.cumsum(theirs) - theirs))
        more = asked & (jnp.cumsum(passed) == 0)
        return taken | more, left - jnp.sum(jnp.where(more, sizes, 0), dtype=jnp.int32)

    state = jnp.zeros(sizes.shape, bool), jnp.array(wanted, jnp.int32)
    return jax.lax.while_loop(lambda state: jnp.any(candidates(*state)), go_on, state)

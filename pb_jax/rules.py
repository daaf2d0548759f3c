"""Rules: which weights go on training, judged by one look at the gradients.

A rule is a pure function `rule(grads, params=None, *, key=None) -> Selection`, which can be traced,
so it may run inside a jitted training step. Write your own the same way.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from pb_jax import magnitudes as mag
from pb_jax.checks import check_choice, check_number
from pb_jax.masks import check_alike
from pb_jax.sharding import alike, automatically, here, mesh_of
from pb_jax.threshold import ThresholdEstimate, check_estimate, estimate_groups, in_units

SCOPES = ("global", "leaf")


class Selection(NamedTuple):
    """What a rule decides.

    Attributes:
        mask: pytree like the gradients, bool arrays of their shapes: True trains, False is frozen.
        threshold: float32 scalar, the score up to which weights are frozen (from which on, where
            the largest are), in the rule's units; NaN where there is none. With scope "leaf" a
            pytree like the gradients, a scalar a leaf.
        estimate: how `kde_otsu` with scope "global" came to it; None for the other rules.
    """

    mask: Any
    threshold: Any
    estimate: ThresholdEstimate | None = None


class Rule(Protocol):
    """A pure function from gradients (and parameters) to a `Selection`."""

    def __call__(self, grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        """Choose the weights that go on training."""
        ...


def check_rule(rule: Any) -> None:
    """Raise a TypeError where `rule` cannot be called as a `Rule` is.

    >>> check_rule(quantile)
    Traceback (most recent call last):
    ...
    TypeError: rule must be called as rule(grads, params, key=key), which pb_jax.quantile is not: \
write pb_jax.quantile(...)
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable, as pb_jax.kde_otsu() is, got {rule!r}")
    try:
        signature = inspect.signature(rule)
    except ValueError:  # something built in, which has none
        return
    try:
        signature.bind(None, None, key=None)
    except TypeError as error:
        made_by = getattr(rule, "__module__", None) == __name__
        named = f"pb_jax.{rule.__name__}" if made_by else repr(rule)  # pyright: ignore[reportAttributeAccessIssue]
        remedy = f": write {named}(...)" if made_by else f": {error}"
        raise TypeError(
            f"rule must be called as rule(grads, params, key=key), which {named} is not{remedy}"
        ) from None


def on_devices(rule: Rule) -> Rule:
    """The rule for gradients that may be split over devices; its masks are split as they are."""

    @functools.wraps(rule)
    def wrapped(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        return automatically(
            lambda grads, params, key: rule(grads, params, key=key),
            Selection(grads, None, None),
            grads,
            params,
            key,
        )

    return wrapped


def kde_otsu(
    bins: int = 300,
    coverage: float = 0.95,
    bandwidth: str | float = "scott",
    scale: float = 1.0,
    learning_rate: ArrayLike = 1.0,
    scope: str = "global",
) -> Rule:
    """The paper's rule: freeze the gradients up to the threshold of `estimate_threshold`.

    Zero gradients are frozen, non-finite ones go on training. Without a usable gradient, or
    without spread, nothing is frozen and the threshold is NaN.

    Args:
        bins: see `estimate_threshold`, as for the next four.
        coverage: share of the non-zero gradients in the region.
        bandwidth: "scott", "silverman" or a number.
        scale: factor on the threshold.
        learning_rate: α: the threshold is in units of abs(gradient) / α. It does not change the
            mask.
        scope: "global", one threshold for all weights, or "leaf", one for each leaf.

    Returns:
        A `Rule`.

    Raises:
        ValueError: for an argument out of range.

    Source:
        Section 3 of the paper.

    Example:
        >>> import jax, jax.numpy as jnp, pb_jax
        >>> grads = {"w": jax.random.exponential(jax.random.key(0), (100, 100))}
        >>> selection = pb_jax.kde_otsu()(grads)
        >>> bool(jnp.all(selection.mask["w"] == (grads["w"] > selection.threshold)))
        True
    """
    check_estimate(bins, coverage, bandwidth, scale, learning_rate)
    check_choice("scope", scope, SCOPES)

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params, key
        values = mag.magnitudes(grads)
        groups = _groups(values, scope)
        alpha = here(learning_rate)
        found = estimate_groups(groups, bins, coverage, bandwidth, scale, alpha)
        mask, threshold = _judged(values, found.threshold, alpha)
        estimate = None
        if scope == "global":
            estimate = jax.tree.map(lambda x: x[0], in_units(found, alpha))
        return _selection(grads, mask, threshold, scope, estimate)

    return rule


def fixed_threshold(t: ArrayLike, learning_rate: ArrayLike = 1.0) -> Rule:
    """Freeze the weights with abs(gradient) / learning_rate ≤ t: the paper's tweaked constants.

    The paper's values, with learning_rate 1e-3: VGG19 0.04, ResNet-110 0.19, DenseNet-121 0.45,
    LeNet-5 0.50, captioner 0.05. Unlike scale-free rules, this one depends on α.

    Args:
        t: threshold, at least 0.
        learning_rate: α, above 0.

    Raises:
        ValueError: for an argument out of range.

    Source:
        Section 4 and appendix of the paper.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.fixed_threshold(0.5, learning_rate=1e-3)(jnp.array([0.0, 4e-4, -6e-4])).mask
        Array([False, False,  True], dtype=bool)
    """
    check_number("t", t, least=0)
    check_number("learning_rate", learning_rate, above=0)

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params, key
        values = mag.magnitudes(grads)
        threshold = jnp.asarray(here(t), jnp.float32)[None]
        # Compared in gradient units, as XLA does not divide alike in all programs. An infinite
        # gradient is above any threshold.
        dtype = values[0].dtype if values else jnp.float32
        limit = jnp.minimum(threshold.astype(dtype) * here(learning_rate), jnp.finfo(dtype).max)
        return _selection(grads, _above(values, limit), threshold, "global")

    return rule


def mean_threshold(learning_rate: ArrayLike = 1.0, scope: str = "global") -> Rule:
    """Freeze the weights whose gradient is at most the mean magnitude of the non-zero ones.

    Args:
        learning_rate: α, above 0: the unit of the reported threshold only.
        scope: "global" or "leaf".

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.mean_threshold()(jnp.array([0.0, 1.0, -2.0, 6.0])).mask
        Array([False, False, False,  True], dtype=bool)
    """
    check_number("learning_rate", learning_rate, above=0)
    check_choice("scope", scope, SCOPES)

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params, key
        values = mag.magnitudes(grads)
        means = jnp.stack([mag.mean(mag.fewer(group)) for group in _groups(values, scope)])
        mask, threshold = _judged(values, means, here(learning_rate))
        return _selection(grads, mask, threshold, scope)

    return rule


def quantile(
    frozen: float,
    learning_rate: ArrayLike = 1.0,
    scope: str = "global",
    largest: bool = False,
) -> Rule:
    """Freeze the share `frozen` of all weights: those with the smallest gradients, zeros included.

    Weights with equal magnitude at the threshold are all frozen, so that the share may be larger,
    as where more than `frozen` of the gradients are zero. Non-finite gradients go on training.

    Args:
        frozen: share to be frozen, in [0, 1).
        learning_rate: α, above 0: the unit of the reported threshold only.
        scope: "global", of all weights together, or "leaf", of each leaf.
        largest: freeze those with the largest gradients instead. If the method is right, this
            control must do worse than `random`.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.quantile(0.5)(jnp.array([4.0, -1.0, 3.0, 2.0])).mask
        Array([ True, False,  True, False], dtype=bool)
        >>> pb_jax.quantile(0.5, largest=True)(jnp.array([4.0, -1.0, 3.0, 2.0])).mask
        Array([False,  True, False,  True], dtype=bool)
    """
    check_number("frozen", frozen, least=0, below=1)
    check_number("learning_rate", learning_rate, above=0)
    check_choice("scope", scope, SCOPES)
    check_choice("largest", largest, (False, True))
    ranked = mag.largest if largest else mag.smallest

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params, key
        values = mag.magnitudes(grads)
        limits = _limits(ranked, values, frozen, scope)
        mask, threshold = _judged(values, limits, here(learning_rate), largest)
        return _selection(grads, mask, threshold, scope)

    return rule


def weight_magnitude(frozen: float, scope: str = "global") -> Rule:
    """Freeze the share `frozen` of all weights: the smallest weights, whatever their gradients.

    Args:
        frozen: share to be frozen, in [0, 1). Ties are frozen together.
        scope: "global" or "leaf".

    Raises:
        ValueError: for an argument out of range; and, by the rule, where params is None, or has
            not the structure, the shapes and the kinds of the gradients.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> rule = pb_jax.weight_magnitude(0.5)
        >>> rule(jnp.ones(4), params=jnp.array([0.1, -2.0, 0.3, 4.0])).mask
        Array([False,  True, False,  True], dtype=bool)
    """
    check_number("frozen", frozen, least=0, below=1)
    check_choice("scope", scope, SCOPES)

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del key
        if params is None:
            raise ValueError(
                "weight_magnitude needs params, got None: update(grads, state, params)"
            )
        check_alike("params", params, "the gradients", grads)
        # What counts is decided by the gradients, as everywhere.
        judged = [
            param
            for grad, param in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
            if mag.is_inexact(grad)
        ]
        if whole := [param for param in judged if not mag.is_inexact(param)]:
            raise ValueError(
                "params must be floating-point where the gradients are, "
                f"got {jnp.result_type(whole[0])}"
            )
        values = mag.magnitudes(judged)
        mask, threshold = _judged(values, _limits(mag.smallest, values, frozen, scope))
        return _selection(grads, mask, threshold, scope)

    return rule


def random(frozen: float, scope: str = "global") -> Rule:
    """Freeze a random share of the weights: the control that any other rule has to beat.

    Args:
        frozen: share to be frozen, in [0, 1): round(frozen * n) of n weights.
        scope: "global", of all weights together, or "leaf", of each leaf.

    Returns:
        A `Rule`; its `key` is a PRNG key, `jax.random.key(0)` where it is None. The threshold is
        NaN.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> import jax, jax.numpy as jnp, pb_jax
        >>> mask = pb_jax.random(0.8)(jnp.zeros(50), key=jax.random.key(1)).mask
        >>> int(mask.sum())
        10
    """
    check_number("frozen", frozen, least=0, below=1)
    check_choice("scope", scope, SCOPES)
    return RandomRule(frozen, scope)


@dataclasses.dataclass(frozen=True)
class RandomRule:
    """What `random` returns: `by_group` draws whole groups by it, and has to know its share."""

    frozen: float
    scope: str

    def __call__(self, grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        """Choose the weights that go on training."""
        del params
        return on_devices(self._draw)(grads, key=key)

    def _draw(self, grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params
        values = mag.magnitudes(grads)
        keys = jax.random.split(jax.random.key(0) if key is None else key, max(len(values), 1))
        # 30 random bits as the pattern of a normal float32: ties are as good as excluded, as they
        # are not among the 23 bits of jax.random.uniform.
        draws = [
            lax.bitcast_convert_type(alike(bits >> 2, value) + (1 << 23), jnp.float32)
            for bits, value in zip(_bits(keys, values), values, strict=True)
        ]
        limits = _limits(mag.smallest, draws, self.frozen, self.scope)
        mask, nan = _above(draws, limits), jnp.full_like(limits, jnp.nan)
        return _selection(grads, mask, nan, self.scope)


def _bits(keys: Array, values: Sequence[Array]) -> list[Array]:
    """32 random bits for each entry, from a key for each array.

    A generator is compiled once for all arrays of one shape, of which networks have hundreds; but
    where they lie on several devices each array has its own, and is drawn where it is needed.
    """
    alone = mesh_of(values) is None
    alike_in_shape: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        alike_in_shape.setdefault(value.shape if alone else i, []).append(i)
    found: dict[int, Array] = {}
    for members in alike_in_shape.values():
        draw = functools.partial(jax.random.bits, shape=values[members[0]].shape, dtype=jnp.uint32)
        if len(members) == 1:
            found[members[0]] = draw(keys[members[0]])
        else:
            found |= dict(zip(members, lax.map(draw, keys[np.array(members)]), strict=True))
    return [found[i] for i in range(len(values))]


def none() -> Rule:
    """Freeze nothing: full training, the baseline.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.none()(jnp.zeros(2)).mask
        Array([ True,  True], dtype=bool)
    """

    @on_devices
    def rule(grads: Any, params: Any = None, *, key: Array | None = None) -> Selection:
        del params, key
        mask = [jnp.ones(value.shape, bool) for value in mag.magnitudes(grads)]
        return _selection(grads, mask, jnp.full(1, jnp.nan), "global")

    return rule


def _groups(values: Sequence[Array], scope: str) -> list[Sequence[Array]]:
    """The leaves that are judged together."""
    return [values] if scope == "global" or not values else [[value] for value in values]


def _above(values: Sequence[Array], thresholds: Array) -> list[Array]:
    """Masks of the leaves: not x ≤ t, so that NaN on either side means training."""
    (thresholds,) = mag.settled(jnp.broadcast_to(thresholds, max(len(values), 1)))
    return [~(value <= thresholds[i]) for i, value in enumerate(values)]


def _judged(
    values: Sequence[Array], limits: Array, alpha: ArrayLike = 1.0, largest: bool = False
) -> tuple[list[Array], Array]:
    """Masks of the leaves, and thresholds in units of α.

    Compared in units of the values, so that α cannot change the mask by rounding. But nothing is
    frozen by a threshold that is NaN, as an α that is traced may make it: 0 / 0.
    """
    thresholds = limits / alpha
    limits = jnp.where(jnp.isnan(thresholds), jnp.nan, limits)
    if largest:
        # Their negatives are at most the negative threshold; only -inf must not count.
        values = [jnp.where(jnp.isfinite(value), -value, jnp.nan) for value in values]
        limits = -limits
    return _above(values, limits), thresholds


def _limits(
    ranked: Callable[[Sequence[Array], int], Array],
    values: Sequence[Array],
    frozen: float,
    scope: str,
) -> Array:
    """The last score of the share `frozen` of each group."""
    return jnp.stack(
        [
            ranked(mag.fewer(group), round(frozen * sum(value.size for value in group)))
            for group in _groups(values, scope)
        ]
    )


def _selection(
    tree: Any,
    masks: Sequence[Array],
    thresholds: Array,
    scope: str,
    estimate: ThresholdEstimate | None = None,
) -> Selection:
    """Put the floating-point leaves' masks back into the tree; other leaves count as training."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [mag.is_inexact(leaf) for leaf in leaves]

    def rebuild(found: Sequence[Any], otherwise: Callable[[Any], Any]) -> Any:
        remaining = iter(found)
        return structure.unflatten(
            [
                next(remaining) if f else otherwise(leaf)
                for f, leaf in zip(floating, leaves, strict=True)
            ]
        )

    mask = rebuild(masks, lambda leaf: jnp.ones(jnp.shape(leaf), bool))
    mask = jax.tree.map(alike, mask, tree)
    thresholds = thresholds.astype(jnp.float32)
    if scope == "global":
        return Selection(mask, thresholds[0], estimate)
    return Selection(mask, rebuild(list(thresholds), lambda _: jnp.array(jnp.nan)), estimate)

"""Transformations that freeze single weights, around any optax optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from pb_jax import magnitudes as mag
from pb_jax.checks import check_choice, check_number
from pb_jax.masks import check_alike, leaf_name
from pb_jax.rules import Rule, check_rule, kde_otsu
from pb_jax.sharding import alike

FREEZE_MODES = ("updates", "gradients")
_LAST_STEP = 2**31 - 1  # steps are counted in int32


class PartialBackpropState(NamedTuple):
    """State of `partial_backprop`.

    Attributes:
        count: int32 scalar, number of updates made.
        mask: pytree like the parameters, bool arrays: True trains. All True while nothing is
            frozen.
        threshold: what the rule's `Selection` says; NaN while nothing is frozen.
        inner_state: state of the wrapped transformation.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mask: Any
    threshold: Any
    inner_state: Any


class FreezeElementsState(NamedTuple):
    """State of `freeze_elements`.

    Attributes:
        mask: pytree like the parameters, bool arrays: True trains.
        inner_state: state of the wrapped transformation.
    """

    mask: Any
    inner_state: Any


class MultiplyByMaskState(NamedTuple):
    """State of `multiply_by_mask`.

    Attributes:
        mask: pytree like the parameters, bool arrays.
    """

    mask: Any


def partial_backprop(
    inner: optax.GradientTransformation,
    rule: Rule | None = None,
    start_step: int = 0,
    refresh_every: int | None = None,
    stop_step: int | None = None,
    freeze: str = "updates",
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Partial Backpropagation: train fully, choose by a rule, train on with the rest frozen.

    Update number `start_step` (from 0) asks the rule which weights go on training, and is itself
    masked already. From then on frozen entries reach `inner` as zero gradients, so that they stay
    out of its moments and of norms for clipping, and their updates are dropped, so that momentum
    and weight decay do not move them: their values stay the same to the bit.

    The mask lives in the optimizer state and is checkpointed, sharded and donated with it. Running
    statistics of batch normalisation are no parameters: they go on moving.

    Args:
        inner: any optax transformation; extra arguments of `update` are passed on to it.
        rule: a `Rule`; None: `kde_otsu()`.
        start_step: first masked update, at least 0. The paper: two epochs' worth.
        refresh_every: updates between new masks, at least 1; None: one mask for good. A new mask is
            made from all gradients, so that frozen weights may train again.
        stop_step: first update of full training again, above `start_step`; None: never.
        freeze: "updates": gradients and updates are masked. "gradients": the gradients only, as
            the paper's appendix does; momentum and decay then go on moving "frozen" weights.
        seed: int or PRNG key for rules that draw at random.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `PartialBackpropState`. Its `update` takes
        `rule_updates`, a pytree like the gradients that the rule sees in their place where a new
        mask is due: mean magnitudes over several batches, say.

    Raises:
        TypeError: `inner` is no gradient transformation, or `rule` cannot be called.
        ValueError: another argument is out of range.

    Source:
        Sections 3 and 4 of the paper, and its appendix.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> tx = pb_jax.partial_backprop(
        ...     optax.adamw(1e-3), rule=pb_jax.quantile(0.5), start_step=2
        ... )
        >>> params = jnp.ones(4)
        >>> state = tx.init(params)
        >>> for _ in range(5):
        ...     updates, state = tx.update(jnp.arange(4.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> state.mask
        Array([False, False,  True,  True], dtype=bool)
    """
    inner = as_transformation(inner)
    rule = kde_otsu() if rule is None else rule
    check_rule(rule)
    check_number("start_step", start_step, whole=True, least=0, most=_LAST_STEP)
    if refresh_every is not None:
        check_number("refresh_every", refresh_every, whole=True, least=1, most=_LAST_STEP)
    if stop_step is not None:
        start = 0 if isinstance(start_step, Tracer) else start_step
        check_number("stop_step", stop_step, whole=True, above=start, most=_LAST_STEP)
    check_choice("freeze", freeze, FREEZE_MODES)

    def choose(count: Array, grads: Any, params: Any) -> tuple[Any, Any]:
        key = jax.random.key(seed) if jnp.ndim(seed) == 0 and not _is_key(seed) else seed
        selection = rule(grads, params, key=jax.random.fold_in(key, count))
        check_alike("the rule's mask", selection.mask, "the updates", grads)
        check_bool(selection.mask)
        return selection.mask, selection.threshold

    def init_fn(params: Any) -> PartialBackpropState:
        threshold = jax.eval_shape(choose, jnp.array(0, jnp.int32), params, params)[1]
        return PartialBackpropState(
            count=jnp.zeros((), jnp.int32),
            mask=_all_true(params),
            threshold=jax.tree.map(lambda t: jnp.full(t.shape, jnp.nan, t.dtype), threshold),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        rule_updates: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, PartialBackpropState]:
        count: Array = state.count
        seen = updates if rule_updates is None else rule_updates
        check_alike("updates", updates, "the mask", state.mask)
        check_alike("rule_updates", seen, "the mask", state.mask)
        since = count - start_step
        due = since == 0 if refresh_every is None else (since >= 0) & (since % refresh_every == 0)
        event = due.astype(jnp.int32)
        if stop_step is not None:
            event = jnp.where(count < stop_step, event, 2)
        mask, threshold = jax.lax.switch(
            event,
            [
                lambda: (state.mask, state.threshold),
                lambda: choose(count, seen, params),
                lambda: (
                    _all_true(state.mask),
                    jax.tree.map(lambda t: jnp.full_like(t, jnp.nan), state.threshold),
                ),
            ],
        )
        updates = _where(mask, updates, 0.0)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if freeze == "updates":
            updates = _where(mask, updates, -0.0)
        count = jnp.asarray(optax.safe_increment(count))
        return updates, PartialBackpropState(count, mask, threshold, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def freeze_elements(
    inner: optax.GradientTransformation, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """Freeze the weights where `mask` is False, for ever and to the bit, under any optimizer.

    Args:
        inner: any optax transformation; extra arguments of `update` are passed on to it.
        mask: pytree like the parameters, with a bool array of its shape, or one bool, for each
            leaf: True trains.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `FreezeElementsState`.

    Raises:
        TypeError: `inner` is no gradient transformation, or the mask is not bool.
        ValueError: by `init`, where the mask does not have the structure and the shapes of the
            parameters.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> tx = pb_jax.freeze_elements(optax.adamw(0.1), jnp.array([True, False]))
        >>> params = jnp.ones(2)
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
        >>> optax.apply_updates(params, updates)[1]
        Array(1., dtype=float32)
    """
    inner = as_transformation(inner)
    check_bool(mask)

    def init_fn(params: Any) -> FreezeElementsState:
        return FreezeElementsState(_fitted(mask, params), inner.init(params))

    def update_fn(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        check_alike("updates", updates, "the mask", state.mask)
        updates = _where(state.mask, updates, 0.0)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return _where(state.mask, updates, -0.0), FreezeElementsState(state.mask, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def multiply_by_mask(mask: Any) -> optax.GradientTransformation:
    """Zero the updates where `mask` is False: the bare link for an `optax.chain`.

    In front of an optimizer it masks gradients, behind one it masks updates. `freeze_elements`
    does both, which is what freezing needs. NaN and infinite updates are zeroed too.

    Args:
        mask: as for `freeze_elements`.

    Raises:
        TypeError: the mask is not bool.
        ValueError: by `init`, where it does not fit the parameters.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> tx = optax.chain(optax.sgd(1.0), pb_jax.multiply_by_mask(jnp.array([True, False])))
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        >>> updates + 0.0
        Array([-1.,  0.], dtype=float32)
    """
    check_bool(mask)

    def init_fn(params: Any) -> MultiplyByMaskState:
        return MultiplyByMaskState(_fitted(mask, params))

    def update_fn(updates: Any, state: Any, params: Any = None):
        del params
        check_alike("updates", updates, "the mask", state.mask)
        return _where(state.mask, updates, -0.0), state

    return optax.GradientTransformation(init_fn, update_fn)


def as_transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
    """`inner`, so that it takes extra arguments; a TypeError where it is no transformation."""
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an optax.GradientTransformation, got {inner!r}")
    return optax.with_extra_args_support(inner)


def _is_key(seed: Any) -> bool:
    return isinstance(seed, Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)


def _all_true(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: alike(jnp.ones_like(leaf, dtype=bool), leaf), tree)


def _where(mask: Any, updates: Any, frozen: float) -> Any:
    """The updates where the mask is True, `frozen` elsewhere.

    For updates `frozen` is -0.0: adding it changes no number, while adding 0.0 would turn a
    parameter of -0.0 into 0.0.
    """

    def one(update: Any, trains: Array) -> Any:
        if not mag.is_inexact(update):
            return update
        return jnp.where(trains, update, jnp.asarray(frozen, jnp.result_type(update)))

    return jax.tree.map(one, updates, mask)


def check_bool(mask: Any) -> None:
    """Raise a TypeError where a leaf of `mask` is not bool."""
    for path, leaf in jax.tree.leaves_with_path(mask):
        dtype = jnp.result_type(leaf)
        if dtype != jnp.bool_:
            where = leaf_name(path)
            raise TypeError(f"mask must be bool, got {dtype}{f' at {where}' if where else ''}")


def check_fits(mask: Any, params: Any) -> None:
    """Raise a ValueError where `mask` is no bool or array of the right shape for each parameter."""
    found, wanted = jax.tree.structure(mask), jax.tree.structure(params)
    if found != wanted:
        raise ValueError(f"mask must have the structure of the parameters, {wanted}, got {found}")
    for (path, param), trains in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(mask), strict=True
    ):
        shape = jnp.shape(param)
        if jnp.shape(trains) not in ((), shape):
            where = leaf_name(path)
            raise ValueError(
                f"mask must have the parameter's shape {shape} or be one bool, "
                f"got {np.shape(trains)}{f' at {where}' if where else ''}"
            )


def _fitted(mask: Any, params: Any) -> Any:
    """The mask as an array for each leaf of the parameters."""
    check_fits(mask, params)
    return jax.tree.map(
        lambda param, trains: jnp.broadcast_to(jnp.asarray(trains), jnp.shape(param)), params, mask
    )

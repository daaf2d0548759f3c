"""Whether an optimizer may be given the trainable entries only: it is tried on a small problem.

What counts is what it does, not what it is called: `optax.lamb` goes where whole leaves are frozen
and nowhere else, and `optax.adamw` does not go where its mask for the decay asks for a leaf's
number of axes.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from pb_jax import magnitudes as mag
from pb_jax.masks import leaf_name

_MANY = 8  # leaves that are all tried
_EDGE = 3  # longest edge of a leaf of the small problem
_SCALES = (1.0, 1e4, 0.5)  # of the gradients in successive updates: clipping must show, too
_WEIGHT = 1e3  # scale of the parameters: a decay of 1e-5 must show next to the gradients


def small_problem(params: Any, mask: Any) -> tuple[Any, Any]:
    """Parameters and a mask for a trial: every axis is cut to at most 3.

    Where there are many leaves, one stands for all with its number of axes, its dtype and the last
    part of its name that are frozen as it is: wholly, in part, not at all. For the others there is
    `optax.MaskedNode()`.

    Args:
        params: pytree of arrays, or of their shapes and dtypes.
        mask: pytree of numpy bool arrays, each of its parameter's shape or of shape ().

    Returns:
        Random float32 (or complex64) parameters in place of floating-point ones, and numpy masks:
        all True and all False where `mask` is, and both elsewhere.

    >>> params, mask = small_problem(jnp.ones((1, 50, 60)), np.arange(3000).reshape(1, 50, 60) > 0)
    >>> params.shape, bool(mask.any()), bool(mask.all())
    ((1, 3, 3), True, False)
    """
    rng = np.random.default_rng(0)
    found, treedef = jax.tree.flatten_with_path(params)
    kinds, small, masks = set(), [], []
    for (path, param), trains in zip(found, jax.tree.leaves(mask), strict=True):
        shape = tuple(min(edge, _EDGE) for edge in param.shape)
        whole = trains.all()
        partial = trains.any() and not whole
        name = leaf_name(path).rsplit(".")[-1].rstrip("0123456789")
        kind = (shape, param.dtype, name, bool(partial), bool(whole))
        if kind in kinds and len(found) > _MANY:
            small.append(optax.MaskedNode())
            masks.append(optax.MaskedNode())
            continue
        kinds.add(kind)
        size = math.prod(shape)
        chosen = rng.permutation(size) < max(1, size // 2) if partial else np.full(size, whole)
        small.append(_draw(rng, jax.ShapeDtypeStruct(shape, param.dtype), _WEIGHT))
        masks.append(chosen.reshape(shape))
    return treedef.unflatten(small), treedef.unflatten(masks)


def difference(
    dense: optax.GradientTransformationExtraArgs,
    compacted: optax.GradientTransformationExtraArgs,
    convert: Callable[[Any], Any],
    params: Any,
) -> str | None:
    """How two transformations differ in a few updates, in words; None where they do not.

    Args:
        dense: the one that is right.
        compacted: the other.
        convert: from a state of the first to one of the second.
        params: pytree of small arrays to run them on.

    Returns:
        The first difference in updates or states; None where there is none that rounding does not
        explain, or where hyperparameters are traced, so that nothing can be compared.

    >>> difference(optax.sgd(0.1), optax.sgd(0.2), lambda state: state, {"w": jnp.ones(2)})
    'the update of w is off by 1 times its largest entry'
    """
    rng = np.random.default_rng(1)
    traced = isinstance(jnp.zeros(()), Tracer)
    with jax.ensure_compile_time_eval() if traced else contextlib.nullcontext():
        params = jax.tree.map(jnp.asarray, params)
        # Compiled, as compiling every operation for every shape would take longer.
        update, compact_update = jax.jit(dense.update), jax.jit(compacted.update)
        states = dense.init(params), compacted.init(params)
        both = params, params
        for scale in _SCALES:
            grads = jax.tree.map(jnp.asarray, _draw(rng, params, scale))
            value = jnp.asarray(scale)
            one, state = update(grads, states[0], both[0], value=value)
            other, compact_state = compact_update(grads, states[1], both[1], value=value)
            states = state, compact_state
            both = optax.apply_updates(both[0], one), optax.apply_updates(both[1], other)
            found = _unlike("the update of ", one, other) or _unlike(
                "the state's ", convert(state), compact_state
            )
            if found:
                return found
    return None


def _unlike(what: str, wanted: Any, got: Any) -> str | None:
    if jax.tree.structure(wanted) != jax.tree.structure(got):
        return f"{what.strip()} has another structure"
    leaves = zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(got), strict=True)
    for (path, a), b in leaves:
        name = leaf_name(path)
        if isinstance(a, Tracer) or isinstance(b, Tracer) or not mag.is_inexact(a):
            continue
        if jnp.shape(a) != jnp.shape(b):
            return f"{what}{name} has shape {jnp.shape(b)} in place of {jnp.shape(a)}"
        # Norms are summed in another order; in half precision that may turn a last digit.
        tolerance = 1e-5 if jnp.finfo(jnp.result_type(a)).bits >= 32 else 1e-2
        a, b = (np.asarray(x).astype(np.complex128) for x in (a, b))
        scale = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
        close = np.isclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        if not close.all():
            off = np.max(np.abs(b - a)[~close]) / scale if scale else np.inf
            return f"{what}{name} is off by {off:.2g} times its largest entry"
    return None


def _draw(rng: np.random.Generator, like: Any, scale: float) -> Any:
    def one(leaf: Any) -> np.ndarray:
        if not mag.is_inexact(leaf):
            return np.zeros(leaf.shape, leaf.dtype)
        values = rng.normal(size=leaf.shape) * scale
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return (values + 1j * rng.normal(size=leaf.shape) * scale).astype(np.complex64)
        return values.astype(np.float32)

    return jax.tree.map(one, like)

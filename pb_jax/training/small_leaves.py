"""Small leaves on one axis: an update of a compact state takes few operations, whatever the leaves.

An update makes half a dozen operations of each leaf, and on a CPU or GPU an operation takes a
microsecond or two to begin: of DenseNet-121's 362 leaves more than all that they compute. So from
the first step of an epoch to the last the moments of small leaves lie end to end. Everywhere else,
in checkpoints above all, each leaf has its own.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from pb_jax.training.modules import Arrays

_SMALL = 2**14  # entries; with more an operation takes longer than it takes to begin


class EntryWise(optax.GradientTransformationExtraArgs):
    """An optimizer for which an entry's update depends on that entry and on scalars alone.

    On no norm of a leaf, no name and no number of axes: leaves may be put end to end.
    """


class JoinedState(NamedTuple):
    """State of `joined`.

    Attributes:
        inner_state: of the optimizer for what `join` returns.
    """

    inner_state: optax.OptState


def join(tree: Mapping[str, Any]) -> Arrays:
    """The tree with its small arrays on one axis, those of a dtype under one name.

    Args:
        tree: flat dict of arrays of any shape; what is no array stays as it is.

    Returns:
        The same with `"joined <dtype>"`, of shape (entries,), in place of arrays of up to 2^14.

    Example:
        >>> tree = {"a": jnp.zeros(3), "b": jnp.ones((2, 2)), "c": jnp.ones((200, 100))}
        >>> [(name, leaf.shape) for name, leaf in join(tree).items()]
        [('c', (200, 100)), ('joined float32', (7,))]
    """
    together = _together(tree)
    members = {name for names in together.values() for name in names}
    rest = {name: leaf for name, leaf in tree.items() if name not in members}
    return rest | {
        key: jnp.concatenate([tree[name].ravel() for name in names])
        for key, names in together.items()
    }


def part(tree: Arrays, like: Mapping[str, Any]) -> Arrays:
    """What `join` has joined, each by itself again. May be traced.

    Where values are known it is done on the host: XLA would compile for every leaf.

    Args:
        tree: as `join` returns it.
        like: what it was given, or the shapes and dtypes of that.

    Example:
        >>> like = {"a": jnp.zeros(3), "b": jnp.ones((2, 2))}
        >>> part(join(like), like)["b"].shape
        (2, 2)
    """
    together = _together(like)
    parted = {name: leaf for name, leaf in tree.items() if name not in together}
    for key, names in together.items():
        ends = list(itertools.accumulate(like[name].size for name in names))
        traced = isinstance(tree[key], Tracer)
        values, module = (tree[key], jnp) if traced else (np.asarray(tree[key]), np)
        pieces = zip(names, module.split(values, ends[:-1]), strict=True)
        pieces = [piece.reshape(like[name].shape) for name, piece in pieces]
        parted |= zip(names, pieces if traced else jax.device_put(pieces), strict=True)
    return parted


def joined(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same updates from a state of joined leaves.

    Args:
        optimizer: `EntryWise`, for a flat dict of arrays.

    Example:
        >>> from pb_jax.training import optimizers
        >>> both = {"a": jnp.zeros(3), "b": jnp.ones((2, 2))}
        >>> transformation = joined(optimizers.create("sgd", 0.1, momentum=0.9))
        >>> updates, state = transformation.update(both, transformation.init(both))
        >>> updates["b"].shape, optax.tree.get(state, "trace")["joined float32"].shape
        ((2, 2), (7,))
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> JoinedState:
        return JoinedState(inner.init(join(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        params = None if params is None else join(params)
        found, inner_state = inner.update(join(updates), state.inner_state, params, **extra_args)
        return part(cast(Arrays, found), updates), JoinedState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnums=0)
def join_state(optimizer: EntryWise, state: optax.OptState) -> JoinedState:
    """The state of `joined(optimizer)` that goes on from one of `optimizer`. May be traced."""
    structure = _structure(optimizer)
    held = structure.flatten_up_to(state)
    return JoinedState(structure.unflatten(join(x) if isinstance(x, dict) else x for x in held))


def part_state(optimizer: EntryWise, state: JoinedState, like: Mapping[str, Any]) -> optax.OptState:
    """The state of `optimizer` that `join_state` was given, after the updates since.

    Args:
        optimizer: see `joined`.
        state: of `joined(optimizer)`.
        like: shapes and dtypes of what is updated.
    """
    structure = _structure(optimizer)
    held = structure.flatten_up_to(state.inner_state)
    return structure.unflatten(part(x, like) if isinstance(x, dict) else x for x in held)


def _together(tree: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the small arrays, sorted, by the name under which they are joined."""
    found: dict[str, list[str]] = {}
    for name in sorted(tree):
        leaf = tree[name]
        if hasattr(leaf, "dtype") and leaf.size <= _SMALL:
            found.setdefault(f"joined {leaf.dtype}", []).append(name)
    return found


def _structure(optimizer: EntryWise) -> Any:
    """Of its state, with one leaf for all that a tree of parameters has in common."""
    return jax.tree.structure(jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct((1,), "float32")))

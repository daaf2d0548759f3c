"""The compact form of an optimizer's state, from a mask on: `freeze.compact`.

It is `PartialBackpropState(count, None, threshold, CompactState)`: moments for what trains only,
and no dense mask. Parameters stay as they are. The shapes depend on the mask, so that the step has
to be compiled once more; on the host, between two steps, one form is made of the other.
"""

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import jax
import numpy as np
import optax

import pb_jax
from pb_jax.compaction import CompactState
from pb_jax.entries import Entries, nothing_trains
from pb_jax.training.modules import Arrays
from pb_jax.training.small_leaves import (
    EntryWise,
    JoinedState,
    join,
    join_state,
    joined,
    part_state,
)


def is_compact(opt_state: Any) -> TypeGuard[pb_jax.PartialBackpropState]:
    """Whether an optimizer's state is of the compact form."""
    return isinstance(opt_state, pb_jax.PartialBackpropState) and isinstance(
        opt_state.inner_state, CompactState
    )


def to_compact(
    optimizer: optax.GradientTransformation,
    state: pb_jax.PartialBackpropState,
    params: Arrays,
    *,
    check: bool,
) -> pb_jax.PartialBackpropState:
    """The compact form of a dense state; see `pb_jax.compact_state`."""
    inner_state = pb_jax.compact_state(
        optimizer, state.inner_state, state.mask, params, check=check
    )
    return state._replace(mask=None, inner_state=inner_state)


def to_dense(
    optimizer: optax.GradientTransformation, state: pb_jax.PartialBackpropState, params: Arrays
) -> pb_jax.PartialBackpropState:
    """The dense form of a compact state; see `pb_jax.expand_state`."""
    inner_state = pb_jax.expand_state(optimizer, state.inner_state, params)
    mask = pb_jax.unpack_mask(state.inner_state.mask)
    return state._replace(mask=mask, inner_state=inner_state)


def is_joined(opt_state: Any) -> TypeGuard[pb_jax.PartialBackpropState]:
    """Whether an optimizer's state is compact, with its small leaves end to end."""
    return is_compact(opt_state) and isinstance(opt_state.inner_state.inner_state, JoinedState)


def to_joined(
    optimizer: EntryWise, state: pb_jax.PartialBackpropState
) -> pb_jax.PartialBackpropState:
    """A compact state with its small leaves end to end; see `pb_jax.training.small_leaves`."""
    held = state.inner_state
    inner_state = join_state(optimizer, held.inner_state)
    return state._replace(inner_state=held._replace(inner_state=inner_state))


def to_parted(
    optimizer: EntryWise, state: pb_jax.PartialBackpropState, params: Arrays
) -> pb_jax.PartialBackpropState:
    """The compact state that `to_joined` was given, after the updates since."""
    held = state.inner_state

    def entries(leaf: jax.Array, where: Any) -> Any:
        return jax.ShapeDtypeStruct(where.shape, leaf.dtype)

    like = Entries(held.mask, held.indices).take("params", params, by=entries)
    inner_state = part_state(optimizer, held.inner_state, like)
    return state._replace(inner_state=held._replace(inner_state=inner_state))


def compact_shapes(
    optimizer: optax.GradientTransformation, mask: Any, params: Arrays, *, check: bool
) -> CompactState:
    """Shapes and dtypes of the compact state under `mask`; a ValueError where there can be none."""
    return jax.eval_shape(pb_jax.compact(optimizer, mask, check=check).init, params)


def trained(opt_state: optax.OptState, params: Arrays) -> Arrays:
    """The parameters but for the leaves that a compact state knows to be frozen as a whole."""
    if not is_compact(opt_state):
        return params
    indices = opt_state.inner_state.indices
    return {name: leaf for name, leaf in params.items() if not nothing_trains(indices[name])}


def exchanged(grads: Arrays, held: CompactState, names: Iterable[str]) -> Arrays:
    """What devices exchange of their gradients; see `pb_jax.compact_gradients`.

    Args:
        grads: of what `trained` returns.
        held: in a state of the compact form.
        names: of all parameters.
    """
    whole = {name: grads.get(name, optax.MaskedNode()) for name in names}
    return pb_jax.compact_gradients(whole, held)


def update(
    optimizer: optax.GradientTransformation,
    grads: Arrays,
    state: pb_jax.PartialBackpropState,
    params: Arrays,
) -> tuple[Arrays, pb_jax.PartialBackpropState, Arrays]:
    """An update under the mask of a compact state. May be traced.

    Args:
        optimizer: that of full training.
        grads: of what `trained` returns; or what `exchanged` makes of them.
        state: of the compact form; small leaves may be joined, see `pb_jax.training.small_leaves`.
        params: all parameters.

    Returns:
        New parameters, new state, and the gradients of what trains: of partly frozen leaves the
        entries that train only, joined as in the state.
    """
    held = state.inner_state
    whole = {name: grads.get(name, optax.MaskedNode()) for name in params}
    taken = Entries(held.mask, held.indices).take("grads", whole, taken=True)
    together = is_joined(state)
    inner = joined(optimizer) if together else optimizer
    params, inner_state = pb_jax.apply_compact(inner, taken, held, params)
    state = state._replace(count=optax.safe_increment(state.count), inner_state=inner_state)
    return params, state, join(taken) if together else taken


def trained_channels(state: pb_jax.PartialBackpropState) -> dict[str, np.ndarray]:
    """Where along its last axis anything of a leaf trains, under a compact state.

    Args:
        state: of the compact form; its indices are fetched.

    Returns:
        Sorted int32 indices for each leaf of two axes or more of which a part trains.
    """
    held, found = state.inner_state, {}
    for name, where in held.indices.items():
        shape = held.mask[name].shape
        if isinstance(where, jax.Array) and len(shape) > 1:
            counts = np.bincount(np.asarray(where) % shape[-1], minlength=shape[-1])
            found[name] = np.flatnonzero(counts).astype(np.int32)
    return found


def trainable(state: pb_jax.PartialBackpropState) -> int:
    """Number of weights that train under a compact state; known without looking at the device."""
    entries = Entries(state.inner_state.mask, state.inner_state.indices)
    return sum(
        0 if nothing_trains(where) else math.prod(shape) if where is None else where.size
        for shape, where in zip(entries.shapes, entries.indices, strict=True)
    )


def size_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what arrays of such shapes and dtypes take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def megabytes(count: int) -> str:
    """Bytes for people.

    Example:
        >>> megabytes(240_486_264), megabytes(1_030_000), megabytes(263_000)
        ('240.5 MB', '1.0 MB', '0.26 MB')
    """
    size = count / 1e6
    return f"{size:,.1f} MB" if size >= 1 else f"{size:.2g} MB"

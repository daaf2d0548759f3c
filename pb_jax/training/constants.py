"""What a training step reads of its state and never changes: the mask, and where its entries are.

Each array that goes into a compiled function and comes out of it costs time, however small it is,
and a compact state has two for each leaf: they could take what its update saves. So compiled steps
are given the constants apart, and return only what changes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import pb_jax
from pb_jax.masks import is_packed
from pb_jax.training.compact import is_compact
from pb_jax.training.step import TrainState


class Constants(NamedTuple):
    """Of a state between two masks.

    Attributes:
        mask: pytree like the parameters, bool, or packed in a compact state; None: there is none.
        indices: of a compact state: see `pb_jax.CompactState`; else None.
    """

    mask: Any
    indices: Any

    @property
    def read(self) -> Any:
        """What a compiled step is given: of a packed mask it needs to know the shapes alone."""
        return self.mask if self.indices is None else self.indices


def split_constants(state: TrainState) -> tuple[TrainState, Constants]:
    """The state without its constants, and those. `with_constants` undoes it."""
    opt_state = state.opt_state
    if not isinstance(opt_state, pb_jax.PartialBackpropState):
        return state, Constants(None, None)
    if is_compact(opt_state):
        held = opt_state.inner_state
        constants = Constants(held.mask, held.indices)
        opt_state = opt_state._replace(inner_state=held._replace(mask=None, indices=None))
    else:
        constants = Constants(opt_state.mask, None)
        opt_state = opt_state._replace(mask=None)
    return state._replace(opt_state=opt_state), constants


def with_constants(state: TrainState, constants: Constants) -> TrainState:
    """The whole state again: see `split_constants`."""
    opt_state = state.opt_state
    if not isinstance(opt_state, pb_jax.PartialBackpropState):
        return state
    if is_compact(opt_state):
        held = opt_state.inner_state._replace(mask=constants.mask, indices=constants.indices)
        return state._replace(opt_state=opt_state._replace(inner_state=held))
    return state._replace(opt_state=opt_state._replace(mask=constants.mask))


def of_changing(step: Callable[..., Any], constants: Constants) -> Callable[..., Any]:
    """A step as a function of what changes, which may be donated, and of `Constants.read`.

    Args:
        step: from a state and more to a tuple of the next state and more; it leaves the mask.
        constants: like those that it will be given.
    """

    def without_bits(leaf: Any) -> Any:
        return dataclasses.replace(leaf, bits=None)

    shapes = None
    if constants.indices is not None:
        shapes = jax.tree.map(without_bits, constants.mask, is_leaf=is_packed)

    def changing(state: TrainState, read: Any, *arguments: Any) -> Any:
        known = Constants(read, None) if shapes is None else Constants(shapes, read)
        state, *others = step(with_constants(state, known), *arguments)
        return split_constants(state)[0], *others

    return changing

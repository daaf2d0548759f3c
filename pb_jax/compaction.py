"""Optimizer state for the trainable entries only."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pb_jax import elementwise
from pb_jax.entries import Entries, locate, nothing_trains, on_host, pick, place
from pb_jax.masks import leaf_name
from pb_jax.parts import PartIndices
from pb_jax.transforms import as_transformation, check_bool, check_fits, freeze_elements

_TAG = 1_000_003  # a length that no state has by itself


class CompactState(NamedTuple):
    """State of `compact`. It says all that an update needs to know of the mask.

    Attributes:
        mask: pytree like the parameters, a `PackedLeaf` for each array, one bit a weight: see
            `unpack_mask`.
        indices: pytree like the parameters: int32 (number of trainable entries,), the sorted
            positions in C order, where a part of a leaf trains; `PartIndices` where besides the
            leaf is split over devices; None where all of it trains; `optax.MaskedNode()` where none
            of it does.
        inner_state: state of the wrapped transformation for the trainable entries.
    """

    mask: Any
    indices: Any
    inner_state: Any


def compact(
    inner: optax.GradientTransformation, mask: Any, *, check: bool = True
) -> optax.GradientTransformationExtraArgs:
    """`freeze_elements` with optimizer state for the trainable entries only.

    Where a part of a leaf trains, `inner` sees those entries as one axis, of gradients and of
    parameters; leaves that train as a whole keep their shape, and those that are frozen as a whole
    are not there (`optax.MaskedNode`). For AMSGrad with 80 % frozen the state takes 0.28 of the
    dense one's bytes, indices and mask included. Updates come back in the shapes of the parameters,
    -0.0 where frozen, which keeps parameters to the bit. `apply_compact` spares that detour.

    The updates equal those of `freeze_elements(inner, mask)` to float rounding where `inner` is
    element-wise: what becomes of an entry depends on that entry, on scalars, and on norms over all
    leaves or over one. That holds for sgd, adam, adamw, amsgrad, lion, rmsprop, adagrad, novograd,
    schedules, decay and clipping by norms. It does not for adafactor, lamb, lars, muon or noise,
    nor for a mask of decay by a leaf's number of axes, unless leaves are frozen as a whole only.

    Where parameters are split over devices, each keeps the state of its own entries, as many as the
    one that has most. For that call `init` outside of `jax.jit`: a traced parameter says how it
    lies along explicit axes only.

    Args:
        inner: an optax transformation; extra arguments of `update` are passed on as they are.
        mask: pytree like the parameters, with a bool array of its shape, or one bool, for each
            leaf: True trains. Its values must be known: another mask is another program.
        check: whether `init` tries `inner` with and without compaction on a small problem of the
            same structure (three updates; axes cut to 3) and compares the states' shapes for this
            one. It costs a second or so, and is passed by where hyperparameters are traced.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `CompactState`. Its `update` takes from
        the state what it has to know of the mask. It accepts anything (None, say) as the gradient
        of a leaf that is frozen as a whole, and returns it where it is no array; and in place of a
        leaf's gradient the entries that train only, in C order and any shape.

    Raises:
        TypeError: `inner` is no gradient transformation, or the mask is not bool, or traced.
        ValueError: by `init`, where the mask does not fit the parameters, or `inner` fails the
            check.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> tx = pb_jax.compact(optax.adam(0.1), jnp.array([[True, False], [False, True]]))
        >>> params = jnp.ones((2, 2))
        >>> state = tx.init(params)
        >>> optax.tree.get(state, "mu").shape
        (2,)
        >>> updates, state = tx.update(jnp.ones((2, 2)), state, params)
        >>> [f"{x:.2f}" for x in optax.apply_updates(params, updates).ravel()]
        ['0.90', '1.00', '1.00', '0.90']
    """
    inner = as_transformation(inner)
    check_bool(mask)
    leaves, treedef = jax.tree.flatten(on_host(mask))
    # A bit a weight, for as long as the transformation lives.
    stored = [(np.packbits(leaf), leaf.shape) for leaf in leaves]

    def init_fn(params: Any) -> CompactState:
        trains = treedef.unflatten(
            np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)
            for bits, shape in stored
        )
        packed, indices, entries, _ = _located(inner, trains, params, check)
        return CompactState(packed, indices, inner.init(entries.take("params", params, by=pick)))

    def update_fn(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        entries = _entries(state)
        taken, inner_state = _update(inner, entries, updates, state, params, extra_args)
        return entries.put(taken, updates), state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def apply_compact(
    inner: optax.GradientTransformation,
    grads: Any,
    state: CompactState,
    params: Any,
    **extra_args: Any,
) -> tuple[Any, CompactState]:
    """One update of the parameters under `compact`, with no dense updates in between.

    The same as `compact(inner, mask).update` and `optax.apply_updates`, but only trainable entries
    are read and written: where `params` are donated, in place (on CPU from jax 0.11). May be
    traced.

    Args:
        inner: the wrapped transformation.
        grads: see `compact`.
        state: of `compact(inner, mask)` for any mask.
        params: pytree of arrays.
        **extra_args: of `inner`.

    Returns:
        The new parameters, in the dtypes of the old, and the new state.

    Raises:
        ValueError: gradients or parameters do not fit the state's mask.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> params, inner = jnp.ones(3), optax.sgd(0.5)
        >>> state = pb_jax.compact(inner, jnp.array([True, False, True])).init(params)
        >>> pb_jax.apply_compact(inner, jnp.ones(3), state, params)[0]
        Array([0.5, 1. , 0.5], dtype=float32)
    """
    inner = as_transformation(inner)
    entries = _entries(state)
    taken, inner_state = _update(inner, entries, grads, state, params, extra_args)
    return entries.add(params, taken), state._replace(inner_state=inner_state)


def compact_gradients(grads: Any, state: CompactState) -> Any:
    """The gradients of what trains under `compact`: all that devices have to exchange.

    In data-parallel training each device takes them of its own part of the batch, inside
    `jax.shard_map`, before they are summed. With 80 % frozen that moves a fifth of the bytes; the
    updates are the same but for the rounding of a sum in another order.

    Args:
        grads: see `compact`.
        state: of `compact(inner, mask)`.

    Returns:
        A pytree like the gradients: the trainable entries on one axis where a part of a leaf
        trains, whole leaves as they are, `optax.MaskedNode()` for those that are frozen as a whole.
        `apply_compact` and `compact(inner, mask).update` take it in place of the gradients.

    Raises:
        ValueError: the gradients do not fit the state's mask.

    Example:
        The parameters have to be made varying, or else JAX sums their whole gradients by itself.

        >>> import jax, jax.numpy as jnp, numpy as np, optax, pb_jax
        >>> from jax.sharding import Mesh, PartitionSpec as P
        >>> params, inner = jnp.ones(5), optax.sgd(0.1)
        >>> state = pb_jax.compact(inner, jnp.array([0, 1, 0, 0, 0], bool)).init(params)
        >>> def gradients(params, state, batch):
        ...     own = jax.lax.pcast(params, "data", to="varying")
        ...     grads = jax.grad(lambda p: jnp.mean(batch @ p))(own)  # of this device's examples
        ...     return jax.lax.pmean(pb_jax.compact_gradients(grads, state), "data")
        >>> mesh = Mesh(np.array(jax.devices()), "data")
        >>> over_devices = jax.shard_map(
        ...     gradients, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()
        ... )
        >>> batch = jnp.ones((8 * len(jax.devices()), 5))
        >>> grads = jax.jit(over_devices)(params, state, batch)
        >>> grads.shape
        (1,)
        >>> params, state = pb_jax.apply_compact(inner, grads, state, params)
    """
    return _entries(state).take("grads", grads, taken=True)


def compact_state(
    inner: optax.GradientTransformation, state: Any, mask: Any, params: Any, *, check: bool = True
) -> CompactState:
    """The state with which `compact(inner, mask)` goes on where a dense optimizer has got to.

    Counts, hyperparameters and the trainable entries' moments stay; those of frozen entries are
    dropped. What stays as it is, is shared with the dense state, not copied. Not to be traced: the
    shapes depend on the mask.

    Args:
        inner: the wrapped transformation.
        state: of `inner` for `params`: the `inner_state` of `freeze_elements` and
            `partial_backprop`.
        mask: see `compact`.
        params: pytree of arrays, or of their shapes and dtypes: values are not looked at.
        check: see `compact`.

    Raises:
        TypeError: see `compact`.
        ValueError: mask or state do not fit the parameters, or `inner` fails the check, or has a
            state that cannot be split by entries.

    Example:
        >>> import jax.numpy as jnp, optax, pb_jax
        >>> inner, params = optax.sgd(0.1, momentum=0.9), jnp.ones(3)
        >>> _, state = inner.update(jnp.array([1.0, 2.0, 3.0]), inner.init(params))
        >>> mask = jnp.array([True, False, True])
        >>> small = pb_jax.compact_state(inner, state, mask, params)
        >>> optax.tree.get(small, "trace")
        Array([1., 3.], dtype=float32)
        >>> optax.tree.get(pb_jax.expand_state(inner, small, params), "trace")
        Array([1., 0., 3.], dtype=float32)
    """
    inner = as_transformation(inner)
    check_bool(mask)
    packed, indices, _, layout = _located(inner, on_host(mask), params, check)
    layout.check("state", state, layout.dense)
    dense = dict(jax.tree.leaves_with_path(state))

    def take(path: Any, like: Any) -> Any:
        where = layout.where(path)
        if where is None:
            return dense[path]
        return pick(dense[path], where, len(like.shape) - 1)

    inner_state = jax.tree_util.tree_map_with_path(take, layout.compact)
    return CompactState(packed, indices, inner_state)


def expand_state(inner: optax.GradientTransformation, state: CompactState, params: Any) -> Any:
    """The dense state of `inner` that goes on where a compact one has got to. May be traced.

    What the state knows stays to the bit. Frozen entries get what `inner.init(params)` gives them:
    moments of zero, as though their training began now.

    Args:
        inner: the wrapped transformation.
        state: of `compact(inner, mask)`.
        params: pytree of arrays, the present parameters.

    Returns:
        A state of `inner`, for use with it, with `freeze_elements` or `partial_backprop`.

    Raises:
        ValueError: the state is not one of `inner` for such parameters.

    Example:
        See `compact_state`.
    """
    inner = as_transformation(inner)
    entries, shapes = _entries(state), _shapes(params)
    entries.check_shapes("params", shapes)
    layout = _Layout(inner, entries, shapes)
    layout.check("state.inner_state", state.inner_state, layout.compact)
    known = dict(jax.tree.leaves_with_path(state.inner_state))

    def fill(path: Any, fresh: Any) -> Any:
        if path not in known:
            return fresh
        where = layout.where(path)
        if where is None:
            return known[path]
        leading = known[path].ndim - 1
        return place(fresh.astype(known[path].dtype), where, known[path], leading)

    return jax.tree_util.tree_map_with_path(fill, inner.init(params))


def _entries(state: Any) -> Entries:
    """What a state says of the mask; a TypeError where it is of another transformation."""
    if not isinstance(state, CompactState):
        raise TypeError(
            "state must be a CompactState, as compact(inner, mask).init makes it, "
            f"got {type(state).__name__}"
        )
    return Entries(state.mask, state.indices)


def _update(
    inner: optax.GradientTransformationExtraArgs,
    entries: Entries,
    updates: Any,
    state: CompactState,
    params: Any,
    extra_args: dict[str, Any],
) -> tuple[Any, Any]:
    updates = entries.take("updates", updates, taken=True)
    params = None if params is None else entries.take("params", params)
    return inner.update(updates, state.inner_state, params, **extra_args)


def _located(
    inner: optax.GradientTransformationExtraArgs, mask: Any, params: Any, check: bool
) -> tuple[Any, Any, Entries, "_Layout"]:
    shapes = _shapes(params)
    check_fits(mask, shapes)
    packed, indices = locate(mask, params)
    entries = Entries(packed, indices)
    layout = _Layout(inner, entries, shapes)
    if check:
        _check(inner, mask, shapes)
    return packed, indices, entries, layout


def _shapes(params: Any) -> Any:
    return jax.eval_shape(lambda tree: tree, params)


def _check(inner: optax.GradientTransformationExtraArgs, mask: Any, shapes: Any) -> None:
    params, mask = elementwise.small_problem(shapes, mask)
    try:
        found = elementwise.difference(
            freeze_elements(inner, mask),
            compact(inner, mask, check=False),
            lambda state: compact_state(inner, state.inner_state, mask, params, check=False),
            params,
        )
    except Exception as error:  # whatever a transformation raises where it misses something
        raise ValueError(
            f"inner could not be tried on a small problem ({type(error).__name__}: {error}); "
            "where it is element-wise, check=False spares the trial"
        ) from error
    if found:
        raise ValueError(
            f"inner is not element-wise: with trainable entries only, {found}. "
            "pb_jax.freeze_elements(inner, mask) freezes under any optimizer, at its full state"
        )


class _Layout:
    """Which leaves of a transformation's state belong to which parameters.

    Found by giving it parameters of unmistakable lengths: no names are compared.

    Attributes:
        dense: shapes of the state for all entries.
        compact: shapes of the state for trainable ones; lengths stand for parameters.
    """

    def __init__(
        self, inner: optax.GradientTransformationExtraArgs, entries: Entries, shapes: Any
    ) -> None:
        def tagged(position: int, param: Any, where: Any) -> Any:
            if where is None or nothing_trains(where):
                return param if where is None else where
            return jax.ShapeDtypeStruct((_TAG + position,), param.dtype)

        leaves = jax.tree.leaves(shapes)
        self._entries = entries
        self.dense = jax.eval_shape(inner.init, shapes)
        self.compact = jax.eval_shape(
            inner.init,
            entries.treedef.unflatten(map(tagged, range(len(leaves)), leaves, entries.indices)),
        )
        dense = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(self.dense)}
        self._compact = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(self.compact)}
        for path, shape in self._compact.items():
            position = self._position(path)
            wanted = shape
            if position is not None:
                wanted = (*shape[:-1], *leaves[position].shape)
            if dense.get(path) != wanted:
                raise ValueError(
                    "inner is not element-wise: "
                    f"its state's {leaf_name(path)} depends on more of a parameter than its entries"
                )

    def check(self, name: str, state: Any, wanted: Any) -> None:
        """Raise a ValueError where `state` is not of the structure and the shapes `wanted`."""
        if jax.tree.structure(state) != jax.tree.structure(wanted):
            raise ValueError(
                f"{name} must be a state of inner for these parameters, of structure "
                f"{jax.tree.structure(wanted)}, got {jax.tree.structure(state)}"
            )
        for (path, leaf), like in zip(
            jax.tree.leaves_with_path(state), jax.tree.leaves(wanted), strict=True
        ):
            shape, where = like.shape, self.where(path) if wanted is self.compact else None
            shape = shape if where is None else (*shape[:-1], where.size)
            if jnp.shape(leaf) != shape:
                raise ValueError(
                    f"{name} must be a state of inner for these parameters, "
                    f"with shape {shape} at {leaf_name(path)}, got {jnp.shape(leaf)}"
                )

    def where(self, path: Any) -> Any:
        """Indices of the entries that a leaf of the compact state holds; None: it stays."""
        position = self._position(path)
        return None if position is None else self._entries.indices[position]

    def _position(self, path: Any) -> int | None:
        shape = self._compact[path]
        position = shape[-1] - _TAG if shape else -1
        indices = self._entries.indices
        known = 0 <= position < len(indices)
        known = known and isinstance(indices[position], jax.Array | PartIndices)
        return position if known else None

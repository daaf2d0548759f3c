"""The trainable entries of a tree, leaf by leaf: where they are, out of the tree and back into it.

A leaf of which a part trains goes through int32 indices into its entries in C order, which are
sorted and distinct; or, where it is split over devices, through those of each part (`PartIndices`).
Making them from a mask costs more than an optimizer's step, a gather and a scatter by them cost
less than what they save; so they are kept. Leaves that train as a whole or not at all need none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer

from pb_jax import magnitudes as mag
from pb_jax.masks import PackedLeaf, is_packed, leaf_name
from pb_jax.parts import PartIndices, indices_of

_SORTED: Any = {
    "indices_are_sorted": True,
    "unique_indices": True,
    "mode": "promise_in_bounds",
    "wrap_negative_indices": False,  # there are none, and to look would write the indices again
}
_LARGEST = 2**31 - 1  # what an int32 index reaches


def on_host(mask: Any) -> Any:
    """The mask as numpy arrays; a TypeError where it is traced.

    >>> on_host(jnp.array([True, False]))
    array([ True, False])
    """

    def fetch(path: Any, leaf: Any) -> np.ndarray:
        if isinstance(leaf, Tracer):
            where = leaf_name(path)
            raise TypeError(
                "mask must hold concrete values, as the number of entries that train is the shape "
                f"of the state, got {leaf}{where and f' at {where}'}; take it out of jax.jit first"
            )
        return np.asarray(leaf)

    return jax.tree_util.tree_map_with_path(fetch, mask)


def locate(mask: Any, params: Any) -> tuple[Any, Any]:
    """Where the entries are that train.

    Args:
        mask: pytree of numpy bool arrays, each of its parameter's shape or of shape ().
        params: pytree of arrays, or of their shapes, dtypes and, where they are split over devices,
            shardings.

    Returns:
        Two pytrees like the parameters. The mask with a `PackedLeaf` for each leaf; and indices:
        int32 (number of trainable entries,) where a part of a leaf trains, `PartIndices` where
        besides it is split over devices, None where all of it trains or it holds no floating-point
        numbers, `optax.MaskedNode()` where none of it does.

    Raises:
        ValueError: a leaf is too large for int32 indices.

    >>> mask = {"b": np.array(True), "w": np.array([[True, False], [False, True]])}
    >>> locate(mask, {"b": jnp.ones(3), "w": jnp.ones((2, 2))})[1]
    {'b': None, 'w': Array([0, 3], dtype=int32)}
    """
    treedef = jax.tree.structure(params)
    bits, indices = [], []
    for (path, param), trains in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(mask), strict=True
    ):
        shape = jnp.shape(param)
        flat = np.broadcast_to(trains, shape).ravel()
        bits.append(PackedLeaf(jax.device_put(np.packbits(flat)), shape))
        count = np.count_nonzero(flat)
        if count == flat.size or not mag.is_inexact(param):
            indices.append(None)
        elif count == 0:
            indices.append(optax.MaskedNode())
        elif flat.size > _LARGEST:
            where = leaf_name(path)
            raise ValueError(
                f"a leaf of which a part trains must have at most {_LARGEST} weights, "
                f"got {flat.size}{where and f' at {where}'}"
            )
        else:
            split = indices_of(flat.reshape(shape), param)
            indices.append(split or jax.device_put(np.flatnonzero(flat).astype(np.int32)))
    return treedef.unflatten(bits), treedef.unflatten(indices)


class Entries:
    """The trainable entries of trees of one structure. May be traced.

    Args:
        mask: the packed mask that `locate` has made.
        indices: its indices.
    """

    def __init__(self, mask: Any, indices: Any) -> None:
        found = jax.tree.leaves_with_path(mask, is_leaf=is_packed)
        self._names = [leaf_name(path) for path, _ in found]
        self.treedef = jax.tree.structure(mask, is_leaf=is_packed)
        self.shapes = [leaf.shape for _, leaf in found]
        self.indices = self.treedef.flatten_up_to(indices)

    def leaves(self, name: str, tree: Any) -> list[Any]:
        """One object for each leaf of the mask; a ValueError where `tree` has another structure."""
        try:
            return self.treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(f"{name} must have the structure of the mask: {error}") from error

    def check_shapes(self, name: str, tree: Any) -> None:
        """Raise a ValueError where an array of `tree` has not the shape of the mask."""
        for position, leaf in enumerate(self.leaves(name, tree)):
            self._check_shape(name, position, leaf)

    def take(
        self,
        name: str,
        tree: Any,
        *,
        taken: bool = False,
        by: Callable[[Any, Any], Array] | None = None,
    ) -> Any:
        """The tree with only what trains.

        Args:
            name: of the tree, for errors.
            tree: like the mask, arrays of its shapes; anything where nothing of a leaf trains.
            taken: whether leaves that hold only the entries that train already may be among them.
            by: `gather`, the default, or `pick`.

        Returns:
            The tree with arrays of shape (number of trainable entries,), whole leaves as they are,
            and `optax.MaskedNode()` for those of which nothing trains.
        """

        def one(position: int, leaf: Any, where: Any) -> Any:
            if nothing_trains(where):
                return where
            if where is not None and taken and jnp.size(leaf) == where.size:
                return jnp.ravel(leaf)
            self._check_shape(name, position, leaf)
            return leaf if where is None else (by or gather)(leaf, where)

        return self._map(one, self.leaves(name, tree))

    def put(self, updates: Any, given: Any) -> Any:
        """The updates of what trains in the shapes of the mask, and -0.0 for all else.

        Adding -0.0 changes no number, while adding 0.0 would turn a parameter of -0.0 into 0.0.

        Args:
            updates: a tree as `take` returns it.
            given: the tree that was taken from: of leaves of which nothing trains it says the
                dtype, and what is no array there is returned.
        """

        def one(position: int, update: Any, like: Any, where: Any) -> Any:
            shape = self.shapes[position]
            if nothing_trains(where):
                known = hasattr(like, "dtype") and mag.is_inexact(like)
                return jnp.full(shape, -0.0, like.dtype) if known else like
            if where is None:
                return update
            self._check_entries(position, update, where)
            if isinstance(where, PartIndices):
                return where.full(shape, update, -0.0)
            return scatter(jnp.full(shape, -0.0, update.dtype), where, update)

        return self._map(one, self.leaves("updates", updates), self.leaves("updates", given))

    def add(self, params: Any, updates: Any) -> Any:
        """The parameters with the updates of what trains added; in place where they are donated.

        In place a parameter is written where all that reads it comes before. XLA:CPU does not
        arrange that by itself, and copies it twice; so there nothing is written before all updates
        are known. That helps from jax 0.11: before, barriers go before copies are placed.
        """

        def one(position: int, param: Any, update: Any, where: Any) -> Any:
            if nothing_trains(where):
                return param
            if where is None:
                return jnp.asarray(param + update).astype(jnp.result_type(param))
            self._check_entries(position, update, where)
            if update.dtype == param.dtype and not isinstance(where, PartIndices):
                return param.reshape(-1).at[where].add(update, **_SORTED).reshape(param.shape)
            # The sum is rounded, not the update.
            return scatter(param, where, (gather(param, where) + update).astype(param.dtype))

        before, changes = self.leaves("params", params), self.leaves("updates", updates)
        parts = [i for i, w in enumerate(self.indices) if w is not None and not nothing_trains(w)]
        known = [(before[i], changes[i]) for i in parts]
        known = lax.platform_dependent(known, cpu=lax.optimization_barrier, default=lambda x: x)
        for i, (param, update) in zip(parts, known, strict=True):
            before[i], changes[i] = param, update
        return self._map(one, before, changes)

    def _check_shape(self, name: str, position: int, leaf: Any) -> None:
        if jnp.shape(leaf) != self.shapes[position]:
            raise ValueError(
                f"{name} must have the mask's shape {self.shapes[position]}{self._at(position)}, "
                f"got {jnp.shape(leaf)}"
            )

    def _check_entries(self, position: int, update: Any, where: Array) -> None:
        if jnp.shape(update) != where.shape:
            raise ValueError(
                f"inner must return updates of the shape {where.shape} that it was given"
                f"{self._at(position)}, got {jnp.shape(update)}"
            )

    def _map(self, one: Callable[..., Any], *leaves: list[Any]) -> Any:
        return self.treedef.unflatten(map(one, range(len(self.shapes)), *leaves, self.indices))

    def _at(self, position: int) -> str:
        name = self._names[position]
        return f" at {name}" if name else ""


def gather(leaf: Array, where: Array | PartIndices, leading: int = 0) -> Array:
    """The entries `where` of a leaf, behind as many leading axes, along one axis.

    >>> gather(jnp.arange(6.0).reshape(3, 2), jnp.array([1, 4]))
    Array([1., 4.], dtype=float32)
    """
    if isinstance(where, PartIndices):
        return where.gather(leaf, leading)
    return leaf.reshape(*leaf.shape[:leading], -1).at[..., where].get(**_SORTED)


def scatter(leaf: Array, where: Array | PartIndices, entries: Array, leading: int = 0) -> Array:
    """The leaf with `entries` in the places `where`; see `gather`.

    >>> scatter(jnp.zeros((3, 1)), jnp.array([0, 2]), jnp.array([1.0, 2.0])).ravel()
    Array([1., 0., 2.], dtype=float32)
    """
    if isinstance(where, PartIndices):
        return where.scatter(leaf, entries, leading)
    flat = leaf.reshape(*leaf.shape[:leading], -1).at[..., where]
    return flat.set(entries, **_SORTED).reshape(leaf.shape)


def pick(leaf: Any, where: Array | PartIndices, leading: int = 0) -> Array:
    """`gather`, for use once: on the host where values are known and not split over devices.

    There every leaf has a length of its own, which XLA would compile for: `jnp.array`, too, does.

    >>> pick(jnp.arange(5.0), jnp.array([1, 4]))
    Array([1., 4.], dtype=float32)
    """
    if isinstance(where, PartIndices) or isinstance(leaf, Tracer) or isinstance(where, Tracer):
        return _jitted_gather(jnp.asarray(leaf), where, leading)
    flat = np.asarray(leaf).reshape(*leaf.shape[:leading], -1)
    return jax.device_put(flat[..., np.asarray(where)])


def place(leaf: Array, where: Array | PartIndices, entries: Array, leading: int = 0) -> Array:
    """`scatter`, for use once; see `pick`.

    >>> place(jnp.zeros(3), jnp.array([0, 2]), jnp.array([1.0, 2.0]))
    Array([1., 0., 2.], dtype=float32)
    """
    if isinstance(where, PartIndices) or any(isinstance(x, Tracer) for x in (leaf, where, entries)):
        return _jitted_scatter(leaf, where, entries, leading)
    filled = np.array(leaf).reshape(*leaf.shape[:leading], -1)
    filled[..., np.asarray(where)] = np.asarray(entries)
    return jax.device_put(filled.reshape(leaf.shape))


_jitted_gather = jax.jit(gather, static_argnums=2)
_jitted_scatter = jax.jit(scatter, static_argnums=3)


def nothing_trains(where: Any) -> bool:
    """Whether the indices say that nothing of a leaf trains."""
    return isinstance(where, optax.MaskedNode)

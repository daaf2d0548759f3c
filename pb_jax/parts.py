"""Trainable entries of a leaf that is split over devices: each device finds those of its part."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pb_jax.sharding import automatically

_SORTED: Any = {
    "indices_are_sorted": True,
    "unique_indices": True,
    "wrap_negative_indices": False,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PartIndices:
    """Where a leaf trains, part by part; a pytree node.

    Attributes:
        positions: int32 (parts * longest,), for each part, in C order of the parts, the sorted
            positions in it, in C order of the part. As many for each: those that are too many lie
            beyond its end, and stand for entries that are zero and go nowhere.
        splits: into how many parts each axis is cut, static.
    """

    positions: Array
    splits: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.positions.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the positions, and so of what is gathered by them."""
        return self.positions.shape

    def gather(self, leaf: Array, leading: int = 0) -> Array:
        """The entries, along one axis; they lie as the parts do.

        Args:
            leaf: of the shape of the parameter, behind axes of any other kind.
            leading: how many of those there are.
        """

        def each(positions: Array, leaf: Array) -> Array:
            rows = _to_parts(leaf, self.splits)
            taken = jax.vmap(
                lambda part, where: part.at[..., where].get(mode="fill", fill_value=0, **_SORTED),
                in_axes=(-2, 0),
                out_axes=-2,
            )(rows, self._by_part(positions))
            return taken.reshape(*leaf.shape[:leading], -1)

        return automatically(each, self._along((None,) * leading, None), self.positions, leaf)

    def scatter(self, leaf: Array, entries: Array, leading: int = 0) -> Array:
        """The leaf with other entries; see `gather`."""

        def each(positions: Array, leaf: Array, entries: Array) -> Array:
            rows = _to_parts(leaf, self.splits)
            new = entries.reshape(*rows.shape[:-1], -1)
            put = jax.vmap(
                lambda part, where, new: part.at[..., where].set(new, mode="drop", **_SORTED),
                in_axes=(-2, 0, -2),
                out_axes=-2,
            )(rows, self._by_part(positions), new)
            return _from_parts(put, self.splits, leaf.shape)

        out = self._along((None,) * leading, self.splits)
        return automatically(each, out, self.positions, leaf, entries)

    def full(self, shape: tuple[int, ...], entries: Array, value: float) -> Array:
        """`scatter` into a leaf that is `value` everywhere else."""
        parts, length = math.prod(self.splits), math.prod(shape) // math.prod(self.splits)

        def each(positions: Array, entries: Array) -> Array:
            rows = jax.vmap(
                lambda where, new: (
                    jnp.full(length, value, entries.dtype)
                    .at[where]
                    .set(new, mode="drop", **_SORTED)
                )
            )(self._by_part(positions), entries.reshape(parts, -1))
            return _from_parts(rows, self.splits, shape)

        return automatically(each, self._along((), self.splits), self.positions, entries)

    def _by_part(self, positions: Array) -> Array:
        return positions.reshape(math.prod(self.splits), -1)

    def _along(self, leading: tuple[None, ...], splits: tuple[int, ...] | None) -> Any:
        """How a leaf that is cut into `splits` lies; None: a single axis with one part a device."""
        sharding = jax.typeof(self.positions).sharding
        names = sharding.spec[0]
        if names is None:  # axes are automatic
            return None
        if splits is None:
            return NamedSharding(sharding.mesh, PartitionSpec(*leading, names))
        remaining = list(names if isinstance(names, tuple) else (names,))
        spec = []
        for split in splits:
            taken = []
            while remaining and math.prod(sharding.mesh.shape[name] for name in taken) < split:
                taken.append(remaining.pop(0))
            spec.append(tuple(taken) if len(taken) > 1 else taken[0] if taken else None)
        return NamedSharding(sharding.mesh, PartitionSpec(*leading, *spec))


def indices_of(trains: np.ndarray, leaf: Any) -> PartIndices | None:
    """Indices for a leaf that is split; None where it is not, or where nothing says so.

    Args:
        trains: bool, of the leaf's shape; some of it is True.
        leaf: an array, or its shape and dtype. One that is traced says how it is split along
            explicit axes only.
    """
    traced = isinstance(leaf, Tracer)
    sharding = jax.typeof(leaf).sharding if traced else getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.spec:
        return None
    lengths = sharding.shard_shape(trains.shape)
    splits = tuple(
        whole // length if length else 1
        for whole, length in zip(trains.shape, lengths, strict=True)
    )
    if math.prod(splits) == 1:
        return None
    rows = _to_parts(trains, splits)
    counts = np.count_nonzero(rows, axis=1)
    # One more where all of a part trains: entries must not be taken for the leaf by their number.
    longest = counts.max() + (counts.max() == rows.shape[1])
    beyond = rows.shape[1] + np.arange(longest)
    positions = [
        np.concatenate([np.flatnonzero(row), beyond[: longest - count]])
        for row, count in zip(rows, counts, strict=True)
    ]
    names = [
        name
        for axis in sharding.spec
        if axis is not None
        for name in (axis if isinstance(axis, tuple) else (axis,))
    ]
    where = np.concatenate(positions).astype(np.int32)
    place = NamedSharding(sharding.mesh, PartitionSpec(tuple(names)))
    concrete = isinstance(sharding.mesh, Mesh)
    put = jax.device_put(where, place) if concrete else jax.sharding.reshard(where, place)
    return PartIndices(put, splits)


def _to_parts(leaf: Any, splits: tuple[int, ...]) -> Any:
    """The leaf as (..., parts, entries of a part)."""
    axes, leading = len(splits), leaf.shape[: leaf.ndim - len(splits)]
    before = len(leading)
    cut = [
        edge
        for whole, split in zip(leaf.shape[before:], splits, strict=True)
        for edge in (split, whole // split)
    ]
    order = [*range(before), *(before + 2 * i for i in range(axes))]
    order += [before + 2 * i + 1 for i in range(axes)]
    rows = leaf.reshape(*leading, *cut).transpose(order)
    return rows.reshape(*leading, math.prod(splits), -1)


def _from_parts(rows: Array, splits: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """The inverse of `_to_parts`."""
    axes, before = len(splits), rows.ndim - 2
    lengths = [w // split for w, split in zip(shape[before:], splits, strict=True)]
    cut = rows.reshape(*shape[:before], *splits, *lengths)
    order = [*range(before), *(before + i + part for i in range(axes) for part in (0, axes))]
    return cut.transpose(order).reshape(shape)

"""What a mask holds: counts for reports, and one bit a weight for storage."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pb_jax import magnitudes as mag
from pb_jax.sharding import automatically


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedLeaf:
    """One leaf of a packed mask, a pytree node.

    Attributes:
        bits: uint8 (ceil(size / 8),), in C order, the first weight in the highest bit of the first
            byte; the bits left over are zero.
        shape: the leaf's shape, static.
    """

    bits: Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def is_packed(node: Any) -> bool:
    """Whether a node of a pytree is a leaf of a packed mask.

    >>> is_packed(PackedLeaf(jnp.zeros(1, jnp.uint8), (3,))), is_packed(jnp.zeros(3, bool))
    (True, False)
    """
    return isinstance(node, PackedLeaf)


@dataclasses.dataclass(frozen=True)
class LeafSummary:
    """How much of one leaf trains.

    Attributes:
        size: number of weights.
        trainable: number of those that train.
    """

    size: int
    trainable: int

    @property
    def frozen(self) -> int:
        """Number of frozen weights."""
        return self.size - self.trainable

    @property
    def frozen_fraction(self) -> float:
        """Share of frozen weights, 0 for an empty leaf."""
        return self.frozen / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class MaskSummary(LeafSummary):
    """How much of a mask trains, overall and leaf by leaf; `print` shows a table.

    Attributes:
        leaves: a `LeafSummary` for each leaf, by its path ("conv1.kernel").
    """

    leaves: dict[str, LeafSummary]

    def __str__(self) -> str:
        """A line a leaf."""
        rows = [*self.leaves.items(), ("all", self)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'leaf':{width}} {'weights':>11} {'trainable':>12} {'frozen':>8}"]
        lines += [
            f"{name:{width}} {row.size:11,} {row.trainable:12,} {row.frozen_fraction:8.2%}"
            for name, row in rows
        ]
        return "\n".join(lines)


def leaf_name(path: Sequence[Any]) -> str:
    """A leaf's path as a name: "conv1.kernel", also where flax.nnx keeps a variable's `value`.

    >>> [(path, _)] = jax.tree.leaves_with_path({"conv1": {"kernel": 1}})
    >>> leaf_name(path)
    'conv1.kernel'
    """
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def mask_summary(mask: Any) -> MaskSummary:
    """Count what trains and what is frozen, per leaf and overall, as Python numbers.

    Args:
        mask: pytree of bool arrays: True trains.

    Raises:
        TypeError: a leaf is not bool.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> mask = {"b": jnp.array([True]), "w": jnp.array([True, False, False])}
        >>> print(pb_jax.mask_summary(mask))
        leaf     weights    trainable   frozen
        b             1            1    0.00%
        w             3            1   66.67%
        all           4            2   50.00%
    """
    _check_bool_arrays(mask)
    named: dict[str, Array] = {}
    for path, leaf in jax.tree.leaves_with_path(mask):
        name = leaf_name(path)
        # {"a.b": ...} and {"a": {"b": ...}} have the same name.
        named[jax.tree_util.keystr(path) if name in named else name] = leaf
    trainable = jax.device_get(
        {name: jnp.sum(leaf, dtype=jnp.int32) for name, leaf in named.items()}
    )
    leaves = {
        name: LeafSummary(size=math.prod(leaf.shape), trainable=int(trainable[name]))
        for name, leaf in named.items()
    }
    return MaskSummary(
        size=sum(leaf.size for leaf in leaves.values()),
        trainable=sum(leaf.trainable for leaf in leaves.values()),
        leaves=leaves,
    )


def frozen_fraction(mask: Any) -> Array:
    """Share of weights that are frozen: a float32 scalar, 0 for an empty mask. May be traced.

    Raises:
        TypeError: a leaf of the mask is no bool array.

    >>> frozen_fraction({"w": jnp.array([True, False, False, True])})
    Array(0.5, dtype=float32)
    """
    _check_bool_arrays(mask)
    leaves = jax.tree.leaves(mask)
    frozen = _number(~leaf for leaf in leaves)
    return frozen.astype(jnp.float32) / float(max(sum(leaf.size for leaf in leaves), 1))


def zero_gradient_fraction(grads: Any) -> Array:
    """The paper's frozen ratio, (total - non-zero gradients) / total: a float32 scalar.

    Gradients that happen to be zero count, and those too small to be normal numbers; non-finite
    ones are not zero. May be traced.

    Args:
        grads: pytree of gradients; only floating-point leaves count.

    Source:
        Section 4 of the paper.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.zero_gradient_fraction({"w": jnp.array([0.0, 1.0, 0.0, jnp.nan])})
        Array(0.5, dtype=float32)
    """
    values = mag.magnitudes(grads)
    zero = _number(value == 0 for value in values)
    return zero.astype(jnp.float32) / float(max(sum(value.size for value in values), 1))


def _number(masks: Iterable[Array]) -> Array:
    """How many entries are true, an int32 scalar: zero for no array."""
    counts = [jnp.sum(mask, dtype=jnp.int32) for mask in masks]
    return jnp.sum(jnp.stack([*counts, jnp.zeros((), jnp.int32)]), dtype=jnp.int32)


def pack_mask(mask: Any) -> Any:
    """A mask with one bit a weight.

    Args:
        mask: pytree of bool arrays of any shapes.

    Returns:
        The pytree with a `PackedLeaf` for each array; `unpack_mask` is the way back.

    Raises:
        TypeError: a leaf is not bool.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> packed = pb_jax.pack_mask(jnp.array([[True], [False], [True]]))
        >>> packed.bits, packed.shape
        (Array([160], dtype=uint8), (3, 1))
    """
    _check_bool_arrays(mask)
    return jax.tree.map(
        lambda leaf: PackedLeaf(automatically(_pack, None, leaf), tuple(leaf.shape)), mask
    )


def unpack_mask(packed: Any) -> Any:
    """The mask that `pack_mask` packed.

    Raises:
        TypeError: a leaf is not packed.
        ValueError: a leaf's bits do not fit its shape.

    Example:
        >>> import jax.numpy as jnp, pb_jax
        >>> pb_jax.unpack_mask(pb_jax.pack_mask({"w": jnp.array([True, False, True])}))
        {'w': Array([ True, False,  True], dtype=bool)}
    """

    def unpack(leaf: Any) -> Array:
        if not is_packed(leaf):
            raise TypeError(f"a packed mask must hold what pack_mask makes, got {leaf!r}")
        size = math.prod(leaf.shape)
        if leaf.bits.shape != (-(-size // 8),):
            raise ValueError(
                f"a packed leaf of shape {leaf.shape} needs {-(-size // 8)} bytes, "
                f"got bits of shape {leaf.bits.shape}"
            )
        return jnp.unpackbits(leaf.bits, count=size).astype(bool).reshape(leaf.shape)

    return jax.tree.map(unpack, packed, is_leaf=is_packed)


def _pack(leaf: Array) -> Array:
    return jnp.packbits(leaf.ravel())


def check_alike(name: str, tree: Any, other: str, like: Any) -> None:
    """Raise a ValueError where `tree` has not the structure and the shapes of `like`.

    >>> check_alike("updates", {"w": jnp.ones(2)}, "the mask", {"w": jnp.ones(3)})
    Traceback (most recent call last):
    ...
    ValueError: updates must have the shape of the mask, (3,) at w, got (2,)
    """
    found, wanted = jax.tree.structure(tree), jax.tree.structure(like)
    if found != wanted:
        raise ValueError(f"{name} must have the structure of {other}, {wanted}, got {found}")
    for (path, one), leaf in zip(
        jax.tree.leaves_with_path(like), jax.tree.leaves(tree), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(one):
            where = leaf_name(path)
            raise ValueError(
                f"{name} must have the shape of {other}, {jnp.shape(one)}"
                f"{f' at {where}' if where else ''}, got {jnp.shape(leaf)}"
            )


def _check_bool_arrays(mask: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(mask):
        if not (hasattr(leaf, "shape") and leaf.dtype == jnp.bool_):
            where = leaf_name(path)
            raise TypeError(f"a mask must hold bool arrays, got {leaf!r}{where and f' at {where}'}")

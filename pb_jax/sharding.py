"""Gradients that are split over several devices.

With automatic axes the compiler finds by itself what each device does, if it is told that a mask
lies as its gradients do, and if nothing asks for a leaf as one line. With explicit axes all of this
happens as though they were automatic. Within `jax.shard_map` each device goes by what it holds.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def mesh_of(tree: Any) -> AbstractMesh | None:
    """The mesh of several devices on which the arrays of a tree lie; None where there is none.

    >>> mesh_of(jax.numpy.ones(3)) is None
    True
    """
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(jax.typeof(leaf).sharding, "mesh", None)
        if mesh is not None and not mesh.empty and mesh.size > 1 and not mesh.are_all_axes_manual:
            return mesh
    return None


def alike(array: Array, leaf: Any) -> Array:
    """The array, split over the devices as `leaf`, of the same shape, is."""
    mesh = mesh_of(leaf)
    if mesh is None or AxisType.Auto not in mesh.axis_types:
        return array
    # An operation on all of them, entry by entry: the compiler splits its operands the same way.
    # That it compares and chooses between equals must not be seen before, or it is no operation.
    one, same, *both = lax.optimization_barrier((leaf, leaf, array, array))
    return lax.select(one == same, *both)


def everywhere(array: Array, tree: Any) -> Array:
    """The array, whole on each of the devices over which the leaves of a tree are split."""
    mesh = mesh_of(tree)
    if mesh is None or AxisType.Auto not in mesh.axis_types:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec()))


def automatically(function: Callable[..., Any], out: Any, tree: Any, *args: Any) -> Any:
    """`function(tree, *args)` with automatic axes in place of explicit ones.

    Args:
        function: of pytrees.
        out: a pytree, of which the result is an extension: for each result, or several, an array
            that is split as they are to be, or a sharding; None for those that all devices hold.
        tree: a pytree of arrays, of which some lie on the devices.
        *args: more of them.
    """
    mesh = mesh_of(tree)
    if mesh is None or not mesh.explicit_axes:
        return function(tree, *args)

    def place(leaf: Any) -> NamedSharding:
        if isinstance(leaf, NamedSharding):
            return leaf
        spec = PartitionSpec() if leaf is None else jax.typeof(leaf).sharding.spec
        return NamedSharding(mesh, spec)

    shardings = jax.tree.map(place, out, is_leaf=lambda leaf: leaf is None)
    inside = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=shardings)
    return inside(tree, *args)


def here(scalar: Any) -> Any:
    """A number that was made outside, for use in a function that runs `automatically`."""
    mesh = mesh_of(scalar)
    if mesh is None or mesh == jax.sharding.get_abstract_mesh() or not mesh.explicit_axes:
        return scalar
    return jax.sharding.reshard(scalar, PartitionSpec())

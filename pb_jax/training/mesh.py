"""Training on several devices: what is split over which of them, and what each of them holds.

The devices form a grid with two axes. A batch is split over both. Parameters and all that is of
their shape (moments, masks) are split over `fsdp` and are the same along `data`. The programs are
those of one device: XLA splits them and adds what devices have to tell each other, so that sums,
batch statistics among them, are over the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pb_jax.errors import UserError
from pb_jax.training import stored

DATA, FSDP = AXES = ("data", "fsdp")
"""The axes of a mesh."""

_SMALL = 256  # an array with fewer numbers is not split


class Placement:
    """Where a training's arrays are.

    Args:
        data: devices along which only the batch is split.
        fsdp: devices along which parameters are split too.
        devices: of JAX, at least as many as are asked for; None: all that JAX has.

    Attributes:
        mesh: the grid of devices.
        size: their number.

    Raises:
        UserError: there are fewer devices, or some of a process would be idle.
    """

    def __init__(self, data: int = 1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> None:
        devices = jax.devices() if devices is None else devices
        self.size = data * fsdp
        asked = f"mesh.data={data} and mesh.fsdp={fsdp} ask for {self.size} devices"
        if self.size > len(devices):
            raise UserError(f"{asked}; {_there_are(devices)}")
        if jax.process_count() > 1 and self.size < len(devices):
            raise UserError(f"{asked}, and with several processes all are used: {_all(devices)}")
        self.mesh = jax.make_mesh(
            (data, fsdp), AXES, (AxisType.Auto, AxisType.Auto), devices=devices[: self.size]
        )
        self.fsdp = fsdp
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.by_rows = NamedSharding(self.mesh, PartitionSpec(AXES))
        self._batches = NamedSharding(self.mesh, PartitionSpec(None, AXES))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Of an array of the training state: all of one shape are split alike.

        The longest axis that can be is split over `fsdp`; of equal ones the last.
        """
        fits = [n % self.fsdp == 0 for n in shape]
        if self.fsdp == 1 or not any(fits) or np.prod(shape) < _SMALL:
            return self.replicated
        axis = max((n, i) for i, n in enumerate(shape) if fits[i])[1]
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, FSDP))

    def shardings(self, tree: Any) -> Any:
        """`sharding` of all arrays of a tree."""
        return jax.tree.map(lambda leaf: self.sharding(leaf.shape), tree)

    def shapes(self, tree: Any) -> Any:
        """Shapes of the arrays of a tree, with the shardings that they have when placed."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.sharding(leaf.shape)
            ),
            tree,
        )

    def constrained(self, tree: Any) -> Any:
        """The tree, split as `shardings` says, in a function that is traced."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def place(self, tree: Any) -> Any:
        """Arrays that every process has whole, where they belong. They are copied.

        Args:
            tree: of arrays on the host or on one device, the same in all processes.
        """

        def one(leaf: Any) -> jax.Array:
            plain = stored.plain(leaf)
            return stored.as_like(stored.put(plain, self.sharding(plain.shape)), leaf)

        return jax.tree.map(one, tree)

    def local(self, tree: Any) -> Any:
        """Arrays that are placed, whole and on one device of this process.

        All processes have to call it, and with the same arrays.
        """
        plain = jax.tree.map(stored.plain, tree)
        whole = jax.jit(_same, out_shardings=self.replicated)(plain)
        return jax.tree.map(
            lambda leaf, like: stored.as_like(leaf.addressable_data(0), like), whole, tree
        )

    def batches(self, rows: np.ndarray, read: Callable[[np.ndarray], Any]) -> Any:
        """Examples, each on the device that needs it; this process reads those of its devices.

        Args:
            rows: indices (batches, batch size).
            read: from indices of any shape to a tree of arrays with these first axes.

        Returns:
            A tree of arrays with the first axes (batches, batch size), split along the second.
        """
        where = self._batches.addressable_devices_indices_map(rows.shape)
        parts = [jax.device_put(read(rows[index]), device) for device, index in where.items()]

        def join(*leaves: jax.Array) -> jax.Array:
            shape = (*rows.shape, *leaves[0].shape[2:])
            return jax.make_array_from_single_device_arrays(shape, self._batches, leaves)

        return jax.tree.map(join, *parts)

    def over_devices(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` on each device, with its part of the last argument and all of the others.

        Its results have to be the same on all devices.
        """

        def call(*arguments: Any) -> Any:
            *whole, batch = arguments
            specs = (*[PartitionSpec()] * len(whole), PartitionSpec(AXES))
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec()
            )(*whole, batch)

        return call

    def batch_shapes(self, examples: Any, shape: tuple[int, int]) -> Any:
        """Shapes of what `batches` returns.

        Args:
            examples: any of them, a tree of arrays with two axes more.
            shape: of the indices.
        """
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (*shape, *leaf.shape[2:]), leaf.dtype, sharding=self._batches
            ),
            examples,
        )


def _same(tree: Any) -> Any:
    return tree


def _all(devices: Sequence[Any]) -> str:
    return f"mesh.data times mesh.fsdp must be {len(devices)}"


def _there_are(devices: Sequence[Any]) -> str:
    kind = devices[0].device_kind
    found = f"there is 1 ({kind})" if len(devices) == 1 else f"there are {len(devices)} ({kind})"
    if devices[0].platform == "cpu":
        found += ". JAX_NUM_CPU_DEVICES=N in the environment makes N of a CPU, for trials"
    return found

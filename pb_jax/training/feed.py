"""How the compiled functions of `pb_jax.training.step` come by their examples."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.training.config import check_batch
from pb_jax.training.mesh import Placement
from pb_jax.training.task import Order, Task


class Batches(NamedTuple):
    """The arguments `data` and `order` of `Steps.train`."""

    data: Any
    order: jax.Array | None


class Evaluated(NamedTuple):
    """The arguments `data` and `rows` of `Steps.evaluate` or `evaluate_many`, and their length."""

    data: Any
    rows: jax.Array
    length: int


class Feed(Protocol):
    """What a `Runner` asks for examples."""

    def epoch(self, order: Order) -> Callable[[int], Batches]:
        """The batches of an epoch, by the number of the step in it."""
        ...

    def like(self, order: Order, length: int) -> Batches:
        """What `epoch` gives for a step of this length, or its shapes: to compile for."""
        ...

    def evaluation(self) -> Iterable[Evaluated]:
        """Everything that is evaluated."""
        ...


class Resident:
    """Both splits are on the device, a step gathers its batch by indices.

    Args:
        task: whose examples.
        whole: whether all batches of an evaluation are given at once.
    """

    def __init__(self, task: Task, whole: bool) -> None:
        self._train = task.train_data()
        data, order = task.evaluation_data(), task.evaluation_order()
        rows = jnp.asarray(order.rows)
        each = [(rows, 0)] if whole else zip(rows, order.lengths, strict=True)
        self._evaluation = [Evaluated(data, rows, length) for rows, length in each]

    def epoch(self, order: Order) -> Callable[[int], Batches]:
        """See `Feed`."""
        batches = Batches(self._train, jnp.asarray(order.rows))
        return lambda step: batches

    def like(self, order: Order, length: int) -> Batches:
        """See `Feed`."""
        del length
        return self.epoch(order)(0)

    def evaluation(self) -> Iterable[Evaluated]:
        """See `Feed`."""
        return self._evaluation


class Streamed:
    """Batches go from the host to the devices that share them.

    Each process reads its share. Batches are read while the devices are busy with those before.

    Args:
        task: whose examples.
        placement: of the arrays.
        whole: whether an epoch's batches are given at once, and those of an evaluation.

    Raises:
        UserError: batches that cannot be split over the devices.
    """

    def __init__(self, task: Task, placement: Placement, whole: bool) -> None:
        self._task, self._placement, self._whole = task, placement, whole
        check_batch("batch_size", task.batch_size, placement.size)
        rows, lengths = task.evaluation_order()
        spare = -rows.shape[1] % placement.size
        self._order = Order(np.pad(rows, ((0, 0), (0, spare)), constant_values=-1), lengths)
        self._kept: list[Evaluated] | None = None

    def epoch(self, order: Order) -> Callable[[int], Batches]:
        """See `Feed`."""
        if self._whole:
            batches = Batches(self._batches(order.rows, 0), None)
            return lambda step: batches

        def at(step: int) -> Batches:
            return Batches(self._batches(order.rows[step : step + 1], order.lengths[step]), None)

        return at

    def like(self, order: Order, length: int) -> Batches:
        """See `Feed`."""
        count = len(order.rows) if self._whole else 1
        examples = self._task.read(np.zeros((1, 1), np.int32), length)
        shape = (count, order.rows.shape[1])
        return Batches(self._placement.batch_shapes(examples, shape), None)

    def evaluation(self) -> Iterable[Evaluated]:
        """See `Feed`."""
        if not self._whole:
            return map(self._evaluated, range(len(self._order.rows)))
        if self._kept is None:
            self._kept = [self._evaluated(None)]
        return self._kept

    def _evaluated(self, step: int | None) -> Evaluated:
        rows = self._order.rows if step is None else self._order.rows[step : step + 1]
        length = 0 if step is None else self._order.lengths[step]
        data = self._batches(rows, length, evaluation=True)
        return Evaluated(data, self._placement.batches(rows, lambda part: part), length)

    def _batches(self, rows: np.ndarray, length: int, *, evaluation: bool = False) -> Any:
        def read(part: np.ndarray) -> Any:
            return self._task.read(part, length, evaluation=evaluation)

        return self._placement.batches(rows, read)

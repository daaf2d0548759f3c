"""What is trained on what, and how it is judged: the part of training that knows about the data."""

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.training.modules import Arrays


class Outcome(NamedTuple):
    """Of a training batch: the model's new state, right predictions and all, int32 scalars."""

    model_state: Arrays
    correct: jax.Array
    counted: jax.Array


class EvalTotals(NamedTuple):
    """Sums over evaluated predictions: float32 loss, int32 right ones, int32 all."""

    loss: jax.Array
    correct: jax.Array
    counted: jax.Array

    @classmethod
    def empty(cls) -> "EvalTotals":
        """Of no predictions."""
        none = jnp.zeros([], jnp.int32)
        return cls(jnp.zeros([], jnp.float32), none, none)


class Order(NamedTuple):
    """The batches of an epoch, or of an evaluation.

    Attributes:
        rows: indices of examples, int32 (steps, batch size).
        lengths: of each step, one of `Task.lengths`.
    """

    rows: np.ndarray
    lengths: tuple[int, ...]


class Task(abc.ABC):
    """A model, its data, its loss and its scores.

    Attributes:
        params: the initial trained arrays, by name.
        model_state: the model's other arrays, by name.
        examples: number of training examples.
        batch_size: examples a step.
        lengths: what the sequences of a batch can be cut to. Each is compiled on its own: a task
            without sequences has one, 0.
        score: the key of an epoch's record that says which epoch is the best; more is better.
        scores: keys that `judge` adds to an epoch's record.
    """

    params: Arrays
    model_state: Arrays
    examples: int
    batch_size: int
    lengths: tuple[int, ...] = (0,)
    score: ClassVar[str] = "val_accuracy"
    scores: ClassVar[tuple[str, ...]] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches; the examples left over are left out."""
        return self.examples // self.batch_size

    @abc.abstractmethod
    def train_data(self) -> Any:
        """A pytree of the training split's arrays, on the device."""

    @abc.abstractmethod
    def evaluation_data(self) -> Any:
        """The same of the split that is evaluated after each epoch."""

    @abc.abstractmethod
    def order(self, seed: int, epoch: int) -> Order:
        """The batches of `epoch`, from 1: a function of these two and the data alone."""

    @abc.abstractmethod
    def evaluation_order(self) -> Order:
        """Batches that hold every evaluated example once; -1 fills up."""

    @abc.abstractmethod
    def gather(self, data: Any, rows: jax.Array, length: int) -> Any:
        """A batch: the examples `rows` of a split that is on the device, cut to `length`."""

    @abc.abstractmethod
    def read(self, rows: np.ndarray, length: int, *, evaluation: bool = False) -> Any:
        """What `gather` returns, as arrays on the host, read from where the task has them.

        Args:
            rows: of any shape, which becomes the first axes of all arrays; of -1, any example.
            length: see `gather`.
            evaluation: of the split that is evaluated, not of the training split.
        """

    @abc.abstractmethod
    def loss(self, params: Arrays, model_state: Arrays, batch: Any) -> tuple[jax.Array, Outcome]:
        """Mean loss of a training batch, a float32 scalar to be differentiated."""

    @abc.abstractmethod
    def evaluate(
        self, params: Arrays, model_state: Arrays, batch: Any, counts: jax.Array
    ) -> EvalTotals:
        """Sums over a batch in evaluation mode.

        Args:
            params: of the model.
            model_state: of the model.
            batch: from `gather` or `read`.
            counts: bool (batch size,): which examples count.
        """

    def with_channels(self, trained: Mapping[str, np.ndarray]) -> "Task":
        """The same task for a mask that is known.

        Args:
            trained: for parameters of which a part trains, with two axes or more, the indices
                along their last axis where something trains, int32, sorted. In the returned task's
                `loss`, gradients of the others need not be right: nobody looks at them.
        """
        del trained
        return self

    def in_parts(self, axes: tuple[str, ...]) -> "Task | None":
        """The same task for `loss` in `jax.shard_map`, where each device has a part of the batch.

        Args:
            axes: of the mesh, over which batches are split.

        Returns:
            A task whose losses have the whole batch's loss as their mean, with statistics of the
            whole batch, and the same model state on all devices; None: `loss` needs to see all.
        """
        del axes
        return None

    def judge(self, params: Arrays, model_state: Arrays) -> dict[str, float]:
        """What an epoch's record holds besides loss and accuracy: a value for each of `scores`."""
        del params, model_state
        return {}

    def finish(self, best: Callable[[], tuple[Arrays, Arrays]], workdir: Path) -> dict[str, Any]:
        """What `summary.json` holds besides, when a run ends.

        Args:
            best: reads the best epoch's parameters and model state.
            workdir: the run's folder.
        """
        del best, workdir
        return {}

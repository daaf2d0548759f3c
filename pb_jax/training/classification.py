"""Classification of images: cross-entropy, accuracy on the test split.

All images stay uint8 on the device; a batch is gathered and normalised inside the compiled step.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pb_jax.errors import UserError
from pb_jax.training import stored
from pb_jax.training.batches import evaluation_order, training_order
from pb_jax.training.modules import Arrays, functional
from pb_jax.training.task import EvalTotals, Order, Outcome, Task


class SplitLike(Protocol):
    """A part of a dataset: uint8 images (N, H, W, C), integer labels (N,)."""

    @property
    def images(self) -> np.ndarray:
        """The images."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Their classes."""
        ...


class DataLike(Protocol):
    """What the task needs to know of a dataset."""

    @property
    def train(self) -> SplitLike:
        """What is trained on."""
        ...

    @property
    def test(self) -> SplitLike:
        """What is evaluated after each epoch."""
        ...

    @property
    def mean(self) -> Sequence[float]:
        """Of the channels, of images scaled to [0, 1]."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Their standard deviations."""
        ...


class Split(NamedTuple):
    """Examples: uint8 images (N, H, W, C) and int32 labels (N,)."""

    images: jax.Array
    labels: jax.Array


class Classification(Task):
    """A classifier and its images.

    Args:
        model: images (N, H, W, C) to logits (N, classes); its arrays are consumed. If it has a
            method `train_channels`, as `models.layers.Network` does, that is told which output
            channels train once a mask is made; and if it has one `over_devices`, as that does, its
            batch norms can be told to average over devices.
        data: uint8 images with labels; kept on the device as they are.
        batch_size: at most the number of training examples.

    Raises:
        UserError: data smaller than a batch, or images that the model cannot take.
    """

    def __init__(self, model: nnx.Module, data: DataLike, batch_size: int) -> None:
        self._apply, self.params, self.model_state, _ = functional(model)
        self._can_narrow = hasattr(model, "train_channels")
        drawn = any(map(stored.is_key, self.model_state.values()))
        self._can_part = hasattr(model, "over_devices") and not drawn
        self._changes: tuple[Callable[[Any], None], ...] = ()
        self._data = data
        self.examples, self.batch_size = len(data.train.labels), batch_size
        if batch_size > self.examples:
            raise UserError(
                f"batch_size={batch_size} is more than the {self.examples} training examples; "
                "take a smaller batch or more data"
            )
        self._check_shapes()

    def with_channels(self, trained: Mapping[str, np.ndarray]) -> "Classification":
        """See `Task`."""
        if not self._can_narrow:
            return self
        return self._changed(lambda module: module.train_channels(trained))

    def in_parts(self, axes: tuple[str, ...]) -> "Classification | None":
        """See `Task`; what is drawn at random, dropout say, is drawn for a whole batch."""
        return self._changed(lambda module: module.over_devices(axes)) if self._can_part else None

    def train_data(self) -> Split:
        """See `Task`."""
        return _on_device(self._data.train)

    def evaluation_data(self) -> Split:
        """See `Task`."""
        return _on_device(self._data.test)

    def order(self, seed: int, epoch: int) -> Order:
        """See `Task`."""
        rows = training_order(seed, epoch, self.examples, self.batch_size)
        return Order(rows, (0,) * len(rows))

    def evaluation_order(self) -> Order:
        """See `Task`."""
        rows = evaluation_order(len(self._data.test.labels), min(self.batch_size, 1000))
        return Order(rows, (0,) * len(rows))

    def gather(self, data: Split, rows: jax.Array, length: int) -> Split:
        """See `Task`."""
        del length
        images = jnp.take(data.images, rows, axis=0, mode="clip")
        return Split(images, data.labels.at[rows].get(mode="clip"))

    def read(self, rows: np.ndarray, length: int, *, evaluation: bool = False) -> Split:
        """See `Task`."""
        del length
        split = self._data.test if evaluation else self._data.train
        return Split(split.images[rows], np.asarray(split.labels, np.int32)[rows])  # pyright: ignore[reportArgumentType]

    def loss(self, params: Arrays, model_state: Arrays, batch: Split) -> tuple[jax.Array, Outcome]:
        """See `Task`."""
        images, labels = self._normalised(batch.images), batch.labels
        logits, model_state = self._apply(
            params, model_state, images, train=True, prepare=self._prepare
        )
        right = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
        loss = jnp.mean(cross_entropy(logits, labels))
        return loss, Outcome(model_state, right, jnp.int32(labels.size))

    def evaluate(
        self,
        params: Arrays,
        model_state: Arrays,
        batch: Split,
        counts: jax.Array,
    ) -> EvalTotals:
        """See `Task`."""
        images, labels = self._normalised(batch.images), batch.labels
        logits, _ = self._apply(params, model_state, images, train=False)
        loss = jnp.where(counts, cross_entropy(logits, labels), 0.0)
        right = counts & (jnp.argmax(logits, axis=-1) == labels)
        return EvalTotals(
            jnp.sum(loss), jnp.sum(right, dtype=jnp.int32), jnp.sum(counts, dtype=jnp.int32)
        )

    def _changed(self, change: Callable[[Any], None]) -> "Classification":
        task = copy.copy(self)
        task._changes = (*self._changes, change)
        return task

    def _prepare(self, module: Any) -> None:
        for change in self._changes:
            change(module)

    def _normalised(self, images: jax.Array) -> jax.Array:
        return normalised(images, self._data.mean, self._data.std)

    def _check_shapes(self) -> None:
        """Find out before compiling that a model is made for other images."""
        shape = self._data.train.images.shape[1:]
        images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        try:
            jax.eval_shape(
                lambda *arrays: self._apply(*arrays, train=False),
                self.params,
                self.model_state,
                images,
            )
        except (TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"the model cannot take images of shape {shape}: {reason}") from error


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each prediction, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def normalised(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images / 255 - mean) / std` in float32, with a mean and deviation for each channel."""
    shape = (1, 1, 1, -1)
    centre = jnp.asarray(mean, jnp.float32).reshape(shape)
    spread = jnp.asarray(std, jnp.float32).reshape(shape)
    return (images.astype(jnp.float32) / 255.0 - centre) / spread


def _on_device(split: SplitLike) -> Split:
    return Split(jnp.asarray(split.images), jnp.asarray(split.labels, jnp.int32))

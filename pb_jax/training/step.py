"""One training step, the step that makes a mask, and evaluation: pure functions of arrays.

All data stays uint8 on the device; a batch is gathered and normalised inside the compiled step. The
same step serves both ways to run an epoch: dispatched one by one (on CPU, where gradients of
convolutions inside a loop are slow), or many under one `lax.scan` (on accelerators).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

import pb_jax
from pb_jax.training.freezing import Freezing
from pb_jax.training.modules import Apply, Arrays


class TrainState(NamedTuple):
    """All that training changes; what a checkpoint holds.

    Attributes:
        step: int32 scalar, updates made.
        params: flat dict of the trained arrays.
        model_state: flat dict of the model's other arrays: batch statistics, random streams. They
            go on moving under a mask.
        opt_state: of the optimizer; the mask is in it.
    """

    step: jax.Array
    params: Arrays
    model_state: Arrays
    opt_state: optax.OptState


class Totals(NamedTuple):
    """Sums over the steps of an epoch.

    Attributes:
        loss: float32, of the batches' mean losses.
        correct: int32, examples classified rightly.
        zeros: float32, of the batches' shares of zero gradients, counted behind the mask.
        steps: int32, number of steps.
        bad_step: int32, the first step whose loss was not finite, from 1; 0: none.
    """

    loss: jax.Array
    correct: jax.Array
    zeros: jax.Array
    steps: jax.Array
    bad_step: jax.Array

    @classmethod
    def empty(cls) -> "Totals":
        """Of no steps."""
        zero, none = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32)
        return cls(zero, none, zero, none, none)


class EvalTotals(NamedTuple):
    """Sums over evaluated examples: float32 loss, int32 correct."""

    loss: jax.Array
    correct: jax.Array


class Split(NamedTuple):
    """Examples on the device: uint8 images (N, H, W, C) and int32 labels (N,)."""

    images: jax.Array
    labels: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def normalised(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images / 255 - mean) / std` in float32, with a mean and deviation for each channel."""
    shape = (1, 1, 1, -1)
    centre = jnp.asarray(mean, jnp.float32).reshape(shape)
    spread = jnp.asarray(std, jnp.float32).reshape(shape)
    return (images.astype(jnp.float32) / 255.0 - centre) / spread


class Steps:
    """The pure functions that the loop compiles.

    Args:
        apply: the model.
        optimizer: an optax transformation, `partial_backprop` around it or not.
        mean: of the channels, of images scaled to [0, 1].
        std: their standard deviations.
        freezing: what is frozen and when; None: full training.
    """

    def __init__(
        self,
        apply: Apply,
        optimizer: optax.GradientTransformation,
        mean: Sequence[float],
        std: Sequence[float],
        freezing: Freezing | None = None,
    ) -> None:
        self._apply = apply
        self._optimizer = optimizer
        self._normalised = functools.partial(normalised, mean=mean, std=std)
        self._freezing = freezing

    def initial(self, params: Arrays, model_state: Arrays) -> TrainState:
        """The state before the first step."""
        optimizer = self._optimizer
        if self._freezing is not None:
            optimizer = self._freezing.around(optimizer)
        opt_state = optimizer.init(params)
        return TrainState(jnp.zeros([], jnp.int32), dict(params), dict(model_state), opt_state)

    def train(
        self, state: TrainState, totals: Totals, data: Split, order: jax.Array
    ) -> tuple[TrainState, Totals]:
        """One update with the batch that is due.

        Args:
            state: before the update.
            totals: of the epoch so far.
            data: the training split.
            order: indices of an epoch's batches, int32 (steps in an epoch, batch size).

        Returns:
            The state and totals after the update.
        """
        loss, aux, grads = self._gradients(state, data, order, _position(state, order))
        return self._updated(state, totals, loss, aux, grads)

    def train_many(
        self, state: TrainState, totals: Totals, data: Split, order: jax.Array, *, count: int
    ) -> tuple[TrainState, Totals]:
        """`count` calls of `train` as one `lax.scan`."""

        def body(carry: tuple[TrainState, Totals], _: None):
            return self.train(*carry, data, order), None

        return jax.lax.scan(body, (state, totals), length=count)[0]

    def mask(
        self,
        state: TrainState,
        totals: Totals,
        data: Split,
        order: jax.Array,
        rule_updates: Arrays | None = None,
    ) -> tuple[TrainState, Totals, pb_jax.ThresholdEstimate | None, Arrays]:
        """`train` at a step in which a new mask is due.

        Also returns the estimate of a rule that makes one, and what the rule has judged: both for
        `mask_report`.

        Args:
            state: see `train`, as for the next three.
            totals: of the epoch so far.
            data: the training split.
            order: of the epoch.
            rule_updates: what the rule is to judge in place of this batch's gradients.
        """
        loss, aux, grads = self._gradients(state, data, order, _position(state, order))
        freezing, opt_state = self._freezing, state.opt_state
        assert freezing is not None
        assert isinstance(opt_state, pb_jax.PartialBackpropState)
        judged = grads if rule_updates is None else rule_updates
        selection = freezing.select(opt_state, judged, state.params)
        opt_state = opt_state._replace(mask=selection.mask, threshold=selection.threshold)
        state = state._replace(opt_state=opt_state)
        state, totals = self._updated(state, totals, loss, aux, grads)
        return state, totals, selection.estimate, judged

    def release(self, state: TrainState) -> TrainState:
        """The state from which full training is resumed."""
        assert self._freezing is not None
        assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
        return state._replace(opt_state=self._freezing.release(state.opt_state))

    def add_magnitudes(
        self,
        total: Arrays,
        state: TrainState,
        data: Split,
        order: jax.Array,
        row: jax.Array,
        weight: jax.Array,
    ) -> Arrays:
        """`total + weight * abs(gradient)` of the epoch's batch `row`; `state` stays."""
        _, _, grads = self._gradients(state, data, order, row)
        return jax.tree.map(lambda t, g: t + (weight * jnp.abs(g)).astype(t.dtype), total, grads)

    def evaluate(
        self,
        params: Arrays,
        model_state: Arrays,
        totals: EvalTotals,
        data: Split,
        rows: jax.Array,
    ) -> EvalTotals:
        """Add a batch, in evaluation mode, to the totals; indices of -1 do not count."""
        counts = rows >= 0
        images, labels = _gather(data, jnp.maximum(rows, 0))
        logits, _ = self._apply(params, model_state, self._normalised(images), train=False)
        loss = jnp.where(counts, cross_entropy(logits, labels), 0.0)
        right = counts & (jnp.argmax(logits, axis=-1) == labels)
        return EvalTotals(
            totals.loss + jnp.sum(loss), totals.correct + jnp.sum(right, dtype=jnp.int32)
        )

    def evaluate_many(
        self, params: Arrays, model_state: Arrays, totals: EvalTotals, data: Split, rows: jax.Array
    ) -> EvalTotals:
        """`evaluate` over rows (batches, batch size) as one `lax.scan`."""

        def body(carry: EvalTotals, row: jax.Array):
            return self.evaluate(params, model_state, carry, data, row), None

        return jax.lax.scan(body, totals, rows)[0]

    def _gradients(self, state: TrainState, data: Split, order: jax.Array, row: Any):
        images, labels = _gather(data, order[row])

        def loss_fn(params: Arrays):
            logits, model_state = self._apply(
                params, state.model_state, self._normalised(images), train=True
            )
            right = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
            return jnp.mean(cross_entropy(logits, labels)), (model_state, right)

        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return loss, aux, grads

    def _updated(
        self,
        state: TrainState,
        totals: Totals,
        loss: jax.Array,
        aux: tuple[Arrays, jax.Array],
        grads: Arrays,
    ) -> tuple[TrainState, Totals]:
        model_state, right = aux
        opt_state = state.opt_state
        if self._freezing is None:
            updates, opt_state = self._optimizer.update(grads, opt_state, state.params)
        else:
            assert isinstance(opt_state, pb_jax.PartialBackpropState)
            updates, opt_state = self._freezing.hold(
                self._optimizer, grads, opt_state, state.params
            )
        params = cast(Arrays, optax.apply_updates(state.params, updates))
        step = state.step + 1
        first_bad = (totals.bad_step == 0) & ~jnp.isfinite(loss)
        totals = Totals(
            loss=totals.loss + loss,
            correct=totals.correct + right,
            zeros=totals.zeros + zero_share(grads, mask_of(opt_state)),
            steps=totals.steps + 1,
            bad_step=jnp.where(first_bad, step, totals.bad_step),
        )
        return TrainState(step, params, model_state, opt_state), totals


def mask_of(opt_state: optax.OptState) -> Arrays | None:
    """The mask that the last update used; None where the optimizer has none."""
    return opt_state.mask if isinstance(opt_state, pb_jax.PartialBackpropState) else None


def threshold_of(opt_state: optax.OptState) -> Any:
    """The threshold of that mask: a scalar, or one for each leaf; None where there is no mask."""
    return opt_state.threshold if isinstance(opt_state, pb_jax.PartialBackpropState) else None


def frozen_counts(opt_state: optax.OptState) -> jax.Array:
    """Frozen weights of each leaf, int32; empty where the optimizer has no mask."""
    mask = mask_of(opt_state)
    if mask is None:
        return jnp.zeros([0], jnp.int32)
    return jnp.stack([jnp.sum(~leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(mask)])


def zero_share(grads: Arrays, mask: Arrays | None) -> jax.Array:
    """Share of the gradients that are zero behind the mask: the paper's frozen ratio."""
    total = sum(leaf.size for leaf in jax.tree.leaves(grads))
    zeros = jax.tree.map(lambda g: g == 0, grads)
    if mask is not None:
        zeros = jax.tree.map(lambda zero, trains: zero | ~trains, zeros, mask)
    counts = [jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(zeros)]
    return jnp.sum(jnp.stack(counts)).astype(jnp.float32) / total


def _position(state: TrainState, order: jax.Array) -> jax.Array:
    return state.step % order.shape[0]


def _gather(data: Split, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.take(data.images, rows, axis=0, mode="clip"), data.labels.at[rows].get(mode="clip")

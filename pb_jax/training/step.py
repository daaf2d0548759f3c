"""One training step, and the step that makes a mask: pure functions of arrays.

What a batch is and what its loss is, the task says. The same step serves both ways to run an epoch:
dispatched one by one (on CPU, where gradients of convolutions inside a loop are slow), or many
under one `lax.scan` (on accelerators).
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

import pb_jax
from pb_jax.magnitudes import fewer
from pb_jax.training import compact
from pb_jax.training.freezing import Freezing
from pb_jax.training.mesh import AXES, Placement
from pb_jax.training.modules import Arrays
from pb_jax.training.small_leaves import EntryWise
from pb_jax.training.task import EvalTotals, Outcome, Task


class TrainState(NamedTuple):
    """All that training changes; what a checkpoint holds.

    Attributes:
        step: int32 scalar, updates made.
        params: flat dict of the trained arrays.
        model_state: flat dict of the model's other arrays: batch statistics, random streams. They
            go on moving under a mask.
        opt_state: of the optimizer; the mask is in it. After a mask it may be of the compact form:
            see `pb_jax.training.compact`.
    """

    step: jax.Array
    params: Arrays
    model_state: Arrays
    opt_state: optax.OptState


class Totals(NamedTuple):
    """Sums over the steps of an epoch.

    Attributes:
        loss: float32, of the batches' mean losses.
        correct: int32, right predictions.
        counted: int32, predictions.
        zeros: float32, of the batches' shares of zero gradients, counted behind the mask.
        steps: int32, number of steps.
        bad_step: int32, the first step whose loss was not finite, from 1; 0: none.
    """

    loss: jax.Array
    correct: jax.Array
    counted: jax.Array
    zeros: jax.Array
    steps: jax.Array
    bad_step: jax.Array

    @classmethod
    def empty(cls) -> "Totals":
        """Of no steps."""
        zero, none = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32)
        return cls(zero, none, none, zero, none, none)


class Steps:
    """The pure functions that the loop compiles.

    Args:
        task: what is trained, on what.
        optimizer: an optax transformation, `partial_backprop` around it or not.
        freezing: what is frozen and when; None: full training.
        placement: of the arrays on several devices. Data then comes in batches that were laid out
            for them (`Placement.batches`), and None in place of the indices.
    """

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        freezing: Freezing | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._task = task
        self._optimizer = optimizer
        self._freezing = freezing
        self._placement = placement
        whole = placement is not None and placement.fsdp == 1
        self._part = task.in_parts(AXES) if whole else None

    def initial(self, params: Arrays, model_state: Arrays) -> TrainState:
        """The state before the first step."""
        optimizer = self._optimizer
        if self._freezing is not None:
            optimizer = self._freezing.around(optimizer)
        opt_state = optimizer.init(params)
        return TrainState(jnp.zeros([], jnp.int32), dict(params), dict(model_state), opt_state)

    def train(
        self,
        state: TrainState,
        totals: Totals,
        data: Any,
        order: jax.Array | None,
        *,
        length: int = 0,
    ) -> tuple[TrainState, Totals]:
        """One update with the batch that is due.

        Args:
            state: before the update.
            totals: of the epoch so far.
            data: the training split; with a placement the epoch's batches, or the one that is due.
            order: indices of an epoch's batches, int32 (steps in an epoch, batch size); with a
                placement None.
            length: to which the batch's sequences are cut; see `Task.lengths`.

        Returns:
            The state and totals after the update.
        """
        loss, outcome, grads = self._gradients(state, data, order, None, length)
        return self._updated(state, totals, loss, outcome, grads)

    def train_many(
        self, state: TrainState, totals: Totals, data: Any, order: jax.Array | None, *, count: int
    ) -> tuple[TrainState, Totals]:
        """`count` calls of `train` as one `lax.scan`."""

        def body(carry: tuple[TrainState, Totals], _: None):
            return self.train(*carry, data, order), None

        return jax.lax.scan(body, (state, totals), length=count)[0]

    def mask(
        self,
        state: TrainState,
        totals: Totals,
        data: Any,
        order: jax.Array | None,
        rule_updates: Arrays | None = None,
        *,
        length: int = 0,
    ) -> tuple[TrainState, Totals, pb_jax.ThresholdEstimate | None, Arrays]:
        """`train` at a step in which a new mask is due.

        Also returns the estimate of a rule that makes one, and what the rule has judged: both for
        `mask_report`.

        Args:
            state: see `train`, as for the next three.
            totals: of the epoch so far.
            data: see `train`.
            order: see `train`.
            rule_updates: what the rule is to judge in place of this batch's gradients.
            length: see `train`.
        """
        loss, outcome, grads = self._gradients(state, data, order, None, length)
        freezing, opt_state = self._freezing, state.opt_state
        assert freezing is not None
        assert isinstance(opt_state, pb_jax.PartialBackpropState)
        judged = grads if rule_updates is None else rule_updates
        selection = freezing.select(opt_state, judged, state.params)
        opt_state = opt_state._replace(mask=selection.mask, threshold=selection.threshold)
        state = state._replace(opt_state=opt_state)
        state, totals = self._updated(state, totals, loss, outcome, grads)
        return state, totals, selection.estimate, judged

    def compacted(self, state: TrainState) -> tuple[TrainState, str]:
        """The state with which to go on after a mask was made: see `Freezing.compacted`."""
        assert self._freezing is not None
        assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
        opt_state, note = self._freezing.compacted(self._optimizer, state.opt_state, state.params)
        return state._replace(opt_state=opt_state), note

    def narrowed(self, state: TrainState) -> "Steps":
        """These functions for a compact state: they compute what its mask lets train."""
        if not compact.is_compact(state.opt_state):
            return self
        task = self._task.with_channels(compact.trained_channels(state.opt_state))
        return Steps(task, self._optimizer, self._freezing, self._placement)

    def joined(self, state: TrainState) -> TrainState:
        """A compact state with small leaves end to end, as `train` is fastest; another as it is.

        Arrays on several devices stay as they are, and so do those of an optimizer that is not
        known to be entry-wise.
        """
        optimizer, opt_state = self._optimizer, state.opt_state
        if self._placement is not None or not isinstance(optimizer, EntryWise):
            return state
        if not compact.is_compact(opt_state):
            return state
        return state._replace(opt_state=compact.to_joined(optimizer, opt_state))

    def parted(self, state: TrainState) -> TrainState:
        """The state that `joined` was given, after the updates since."""
        optimizer, opt_state = self._optimizer, state.opt_state
        if not isinstance(optimizer, EntryWise) or not compact.is_joined(opt_state):
            return state
        opt_state = compact.to_parted(optimizer, opt_state, state.params)
        return state._replace(opt_state=opt_state)

    def expanded(self, state: TrainState) -> TrainState:
        """The state with the optimizer's in its dense form. Not to be traced."""
        if not compact.is_compact(state.opt_state):
            return state
        assert self._freezing is not None
        opt_state = self._freezing.expanded(self._optimizer, state.opt_state, state.params)
        return state._replace(opt_state=strong(opt_state))

    def release(self, state: TrainState) -> TrainState:
        """The state from which full training is resumed."""
        assert self._freezing is not None
        assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
        return state._replace(opt_state=self._freezing.release(state.opt_state))

    def add_magnitudes(
        self,
        total: Arrays,
        state: TrainState,
        data: Any,
        order: jax.Array | None,
        row: jax.Array,
        weight: jax.Array,
        *,
        length: int = 0,
    ) -> Arrays:
        """`total + weight * abs(gradient)` of the epoch's batch `row`; `state` stays."""
        _, _, grads = self._gradients(state, data, order, row, length)
        return jax.tree.map(lambda t, g: t + (weight * jnp.abs(g)).astype(t.dtype), total, grads)

    def evaluate(
        self,
        params: Arrays,
        model_state: Arrays,
        totals: EvalTotals,
        data: Any,
        rows: jax.Array,
        *,
        length: int = 0,
    ) -> EvalTotals:
        """Add a batch, in evaluation mode, to the totals; indices of -1 do not count.

        With a placement `data` is the batch.
        """
        counts = rows >= 0
        if self._placement is None:
            data = self._task.gather(data, jnp.maximum(rows, 0), length)
        found = self._task.evaluate(params, model_state, data, counts)
        return EvalTotals(*(a + b for a, b in zip(totals, found, strict=True)))

    def evaluate_many(
        self, params: Arrays, model_state: Arrays, totals: EvalTotals, data: Any, rows: jax.Array
    ) -> EvalTotals:
        """`evaluate` over rows (batches, batch size) as one `lax.scan`."""

        def body(carry: EvalTotals, batch: Any):
            return self.evaluate(params, model_state, carry, *batch), None

        if self._placement is None:
            return jax.lax.scan(lambda c, row: body(c, (data, row)), totals, rows)[0]
        return jax.lax.scan(body, totals, (data, rows))[0]

    def _gradients(
        self, state: TrainState, data: Any, order: jax.Array | None, row: Any, length: int
    ) -> tuple[jax.Array, Outcome, Arrays]:
        """Of the batch `row`; None: of the one that is due."""
        batches = jax.tree.leaves(data)[0] if order is None else order
        row = state.step % batches.shape[0] if row is None else row

        def examples() -> Any:
            if order is None:
                return jax.tree.map(lambda leaf: leaf[row], data)
            return self._task.gather(data, order[row], length)

        def loss_fn(trained: Arrays) -> tuple[jax.Array, Outcome]:
            params = {**state.params, **trained}
            return self._task.loss(params, state.model_state, examples())

        trained = compact.trained(state.opt_state, state.params)
        if self._part is not None and compact.is_compact(state.opt_state):
            return self._exchanged(self._part, state, trained, examples())
        (loss, outcome), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        if self._placement is not None:
            grads = self._placement.constrained(grads)
        return loss, outcome, grads

    def _exchanged(
        self, task: Task, state: TrainState, trained: Arrays, batch: Any
    ) -> tuple[jax.Array, Outcome, Arrays]:
        """The same, with only what trains exchanged between the devices."""
        assert self._placement is not None
        assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
        held = state.opt_state.inner_state._replace(inner_state=None)

        def of_part(
            held: pb_jax.CompactState,
            params: Arrays,
            model_state: Arrays,
            trained: Arrays,
            batch: Any,
        ) -> tuple[jax.Array, Outcome, Arrays]:
            def loss_fn(trained: Arrays) -> tuple[jax.Array, Outcome]:
                return task.loss({**params, **trained}, model_state, batch)

            # Made a device's own, so that JAX does not sum their gradients by itself; also what
            # is frozen, as a layer's gradients are computed together.
            params, own = jax.lax.pcast((params, trained), AXES, to="varying")
            (loss, outcome), grads = jax.value_and_grad(loss_fn, has_aux=True)(own)
            grads = compact.exchanged(grads, held, params)
            correct, counted = jax.lax.psum((outcome.correct, outcome.counted), AXES)
            loss, grads = jax.lax.pmean((loss, grads), AXES)
            return loss, outcome._replace(correct=correct, counted=counted), grads

        run = self._placement.over_devices(of_part)
        return run(held, state.params, state.model_state, trained, batch)

    def _updated(
        self,
        state: TrainState,
        totals: Totals,
        loss: jax.Array,
        outcome: Outcome,
        grads: Arrays,
    ) -> tuple[TrainState, Totals]:
        params, opt_state = state.params, state.opt_state
        if compact.is_compact(opt_state):
            params, opt_state, grads = compact.update(self._optimizer, grads, opt_state, params)
        else:
            if self._freezing is None:
                updates, opt_state = self._optimizer.update(grads, opt_state, params)
            else:
                assert isinstance(opt_state, pb_jax.PartialBackpropState)
                updates, opt_state = self._freezing.hold(self._optimizer, grads, opt_state, params)
            params = cast(Arrays, optax.apply_updates(params, updates))
        step = state.step + 1
        first_bad = (totals.bad_step == 0) & ~jnp.isfinite(loss)
        totals = Totals(
            loss=totals.loss + loss,
            correct=totals.correct + outcome.correct,
            counted=totals.counted + outcome.counted,
            zeros=totals.zeros + zero_share(grads, mask_of(opt_state), size(params)),
            steps=totals.steps + 1,
            bad_step=jnp.where(first_bad, step, totals.bad_step),
        )
        return TrainState(step, params, outcome.model_state, opt_state), totals


def mask_of(opt_state: optax.OptState) -> Arrays | None:
    """The mask that the last update used, as bools; None where the state holds none."""
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


def zero_share(grads: Arrays, mask: Arrays | None, weights: int) -> jax.Array:
    """Share of the gradients that are zero behind the mask: the paper's frozen ratio.

    Args:
        grads: of all weights; or of some: the others are frozen.
        mask: of all of them; None: nothing else is frozen.
        weights: how many there are.
    """
    known = sum(leaf.size for leaf in jax.tree.leaves(grads))
    zeros = jax.tree.map(lambda g: g == 0, grads)
    if mask is not None:
        zeros = jax.tree.map(lambda zero, trains: zero | ~trains, zeros, mask)
    counts = [jnp.sum(leaf, dtype=jnp.int32) for leaf in fewer(jax.tree.leaves(zeros))]
    found = jnp.sum(jnp.stack([jnp.int32(weights - known), *counts]))
    return found.astype(jnp.float32) / weights


def size(params: Arrays) -> int:
    """Number of weights."""
    return sum(leaf.size for leaf in params.values())


def strong(tree: Any) -> Any:
    """Copies without weak types, so that a restored state is of the same type as a fresh one."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.array(leaf, dtype=leaf.dtype)
        ),
        tree,
    )

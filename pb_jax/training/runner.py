"""An epoch's work on a device: the compiled functions, and the data that they read."""

import collections
import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.training.compact import is_compact, trainable
from pb_jax.training.freezing import Freezing
from pb_jax.training.mask_report import MaskReport, look
from pb_jax.training.modules import Arrays
from pb_jax.training.progress import Progress
from pb_jax.training.step import (
    Steps,
    Totals,
    TrainState,
    frozen_counts,
    mask_of,
    size,
    strong,
)
from pb_jax.training.stopping import Stopping
from pb_jax.training.task import EvalTotals, Order, Task

# Steps dispatched and not yet known to be done. One runs and the next wait, so that the device is
# never idle; more would only make Ctrl-C and the progress line late.
_IN_FLIGHT = 3


class Runner:
    """The compiled functions over data on the device.

    Args:
        task: what to train and to evaluate on.
        steps: the pure functions.
        seed: of the order of the batches.
        scan: an epoch under one `lax.scan`, or step by step. A task whose batches differ in
            length always goes step by step.
        compiler_options: as `jax.jit` takes them.
        progress: where to show it.

    Attributes:
        compiling: seconds of the last epoch that went into compacting the optimizer's state and
            compiling for it.
    """

    def __init__(
        self,
        task: Task,
        steps: Steps,
        *,
        seed: int,
        scan: bool,
        compiler_options: dict[str, Any] | None,
        progress: Progress,
    ) -> None:
        self.task, self.steps, self.progress = task, steps, progress
        self._seed = seed
        self._train_data, self._evaluation_data = task.train_data(), task.evaluation_data()
        self._scan = scan and len(task.lengths) == 1
        order = task.evaluation_order()
        rows = jnp.asarray(order.rows)
        self._evaluation = (
            [(rows, 0)] if self._scan else list(zip(rows, order.lengths, strict=True))
        )
        self._weights = size(task.params)
        self.compiling = 0.0
        self._compiler_options = compiler_options
        self._compiled: dict[tuple[str, int], Callable[..., Any]] = {}
        self._frozen_counts = jax.jit(frozen_counts)

    def compile(self, state: TrainState, freezing: Freezing | None, epochs: range) -> None:
        """Compile what these epochs need, all at once: XLA compiles one function on one core."""
        began = time.monotonic()
        self.progress.status("compiling")
        steps, compilation = self.steps, self._compilation
        rows = jnp.asarray(self.task.order(self._seed, 1).rows)  # all epochs' are of one shape
        dense, jobs = state, {}
        if is_compact(state.opt_state):
            jobs |= self._training(state, rows)
            dense = jax.eval_shape(self._fresh, state.params, state.model_state)
        if dense is state or any(freezing and freezing.releases(epoch) for epoch in epochs):
            jobs |= self._training(dense, rows)
        for batch, length in {length: (b, length) for b, length in self._evaluation}.values():
            evaluate = functools.partial(steps.evaluate, length=length)
            jobs["evaluate", length] = compilation(
                steps.evaluate_many if self._scan else evaluate,
                state.params,
                state.model_state,
                EvalTotals.empty(),
                self._evaluation_data,
                batch,
            )
        for length, judged in self._mask_orders(freezing, epochs):
            for at in set(judged.lengths):
                jobs["magnitudes", at] = compilation(
                    functools.partial(steps.add_magnitudes, length=at),
                    state.params,
                    dense,
                    self._train_data,
                    jnp.asarray(judged.rows),
                    jnp.int32(0),
                    jnp.float32(0),
                    donate=True,
                )
            jobs["mask", length] = compilation(
                functools.partial(steps.mask, length=length),
                *(dense, Totals.empty(), self._train_data, rows),
                *((state.params,) if judged.lengths else ()),
                donate=True,
            )
        self._compile(jobs)
        self.progress.say(f"compiled in {time.monotonic() - began:.1f} s")

    def train(
        self,
        state: TrainState,
        totals: Totals,
        epoch: int,
        freezing: Freezing | None,
        stopping: Stopping,
    ) -> tuple[TrainState, Totals, MaskReport | None]:
        """One epoch, or what is left of it; less where `stopping` says so.

        Step by step that is looked at before each of them; under `lax.scan` before the first step,
        before all others, and not among these.

        Args:
            state: before the epoch, or where it was interrupted.
            totals: of the epoch so far: as many steps are left out.
            epoch: from 1.
            freezing: what is frozen and when; None: full training.
            stopping: says when to stop.
        """
        order = self.task.order(self._seed, epoch)
        rows, lengths = jnp.asarray(order.rows), order.lengths
        report, self.compiling = None, 0.0
        done = int(totals.steps)
        if done == 0:
            state, totals, report = self._first(
                state, totals, epoch, order, rows, freezing, stopping
            )
            done = 1
        if self._scan and done == 1:
            if len(lengths) > 1 and not stopping.asked:
                rest = self._compiled[_named("rest", state), 0]
                state, totals = rest(state, totals, self._train_data, rows)
            return state, totals, report
        pending = collections.deque([totals])
        for length in lengths[done:]:
            if stopping.asked:
                break
            if len(pending) == _IN_FLIGHT:
                self._show(pending.popleft(), report)
            state, totals = self._step(length, state, totals, rows)
            pending.append(totals)
        return state, totals, report

    def evaluate(self, state: TrainState) -> tuple[float, float]:
        """Mean loss and accuracy on what the task evaluates."""
        totals = EvalTotals.empty()
        pending = collections.deque([totals])
        for rows, length in self._evaluation:
            if len(pending) == _IN_FLIGHT:
                pending.popleft().loss.block_until_ready()
            totals = self._compiled["evaluate", length](
                state.params, state.model_state, totals, self._evaluation_data, rows
            )
            pending.append(totals)
        loss, correct, counted = jax.device_get(totals)
        return float(loss) / int(counted), int(correct) / int(counted)

    def frozen(self, state: TrainState) -> float:
        """Share of the weights that are frozen."""
        if is_compact(state.opt_state):
            return (self._weights - trainable(state.opt_state)) / self._weights
        counts = np.asarray(self._frozen_counts(state.opt_state))
        return int(counts.sum(dtype=np.int64)) / self._weights

    def _step(
        self, length: int, state: TrainState, totals: Totals, rows: jax.Array
    ) -> tuple[TrainState, Totals]:
        step = self._compiled[_named("train", state), length]
        return step(state, totals, self._train_data, rows)

    def _first(
        self,
        state: TrainState,
        totals: Totals,
        epoch: int,
        order: Order,
        rows: jax.Array,
        freezing: Freezing | None,
        stopping: Stopping,
    ) -> tuple[TrainState, Totals, MaskReport | None]:
        """An epoch's first step, with the mask that may be due; or nothing: see `train`."""
        if stopping.asked:
            return state, totals, None
        if freezing is not None and freezing.releases(epoch):
            state = jax.jit(self.steps.release, donate_argnums=0)(self.steps.expanded(state))
        if freezing is None or not freezing.makes_mask(epoch):
            return *self._step(order.lengths[0], state, totals, rows), None
        dense = self.steps.expanded(state)
        judged = self._judged(dense, order, freezing, stopping)
        if stopping.asked:
            return state, totals, None
        state, totals, report = self._mask(dense, totals, order, rows, judged, freezing)
        return self._compacted(state, rows, stopping), totals, report

    def _judged(
        self, state: TrainState, order: Order, freezing: Freezing, stopping: Stopping
    ) -> tuple[Arrays, ...]:
        """What a mask is judged by, if not by the gradients of the step that makes it."""
        if not freezing.looks_further:
            return ()
        batches = freezing.judged(order)
        total = jax.tree.map(jnp.zeros_like, state.params)
        looked_at, weight = jnp.asarray(batches.rows), jnp.float32(1 / len(batches.lengths))
        for row, length in enumerate(batches.lengths):
            if stopping.asked:
                break
            total = self._compiled["magnitudes", length](
                total, state, self._train_data, looked_at, jnp.int32(row), weight
            )
        return (total,)

    def _mask(
        self,
        state: TrainState,
        totals: Totals,
        order: Order,
        rows: jax.Array,
        judged: tuple[Arrays, ...],
        freezing: Freezing,
    ) -> tuple[TrainState, Totals, MaskReport]:
        state, totals, estimate, seen = self._compiled["mask", order.lengths[0]](
            state, totals, self._train_data, rows, *judged
        )
        mask = mask_of(state.opt_state)
        assert mask is not None
        return state, totals, look(estimate, seen, mask, freezing.alpha)

    def _compacted(self, state: TrainState, rows: jax.Array, stopping: Stopping) -> TrainState:
        """The state to go on with after a mask, and what is compiled for it."""
        state.step.block_until_ready()  # the mask step is training
        began = time.monotonic()
        self.progress.status("compacting the optimizer's state")
        state, note = self.steps.compacted(state)
        if is_compact(state.opt_state) and not stopping.asked:
            self.progress.status("compiling")
            self._compile(self._training(state, rows))
            note += f", compiled in {time.monotonic() - began:.1f} s"
        if note:
            self.progress.say(note)
        self.compiling = time.monotonic() - began
        return state

    def _training(
        self, state: TrainState, rows: jax.Array
    ) -> dict[tuple[str, int], Callable[[], Any]]:
        """The compilations of an epoch's steps for a state, or for the shapes of a dense one."""
        steps = self.steps.narrowed(state)
        arguments = (state, Totals.empty(), self._train_data, rows)
        jobs = {
            (_named("train", state), length): self._compilation(
                functools.partial(steps.train, length=length), *arguments, donate=True
            )
            for length in self.task.lengths
        }
        if self._scan and self.task.steps_per_epoch > 1:
            # An epoch is its first step, by itself as it may make a mask, and the rest.
            many = functools.partial(steps.train_many, count=self.task.steps_per_epoch - 1)
            jobs[_named("rest", state), 0] = self._compilation(many, *arguments, donate=True)
        return jobs

    def _fresh(self, params: Arrays, model_state: Arrays) -> TrainState:
        return strong(self.steps.initial(params, model_state))

    def _compile(self, jobs: dict[tuple[str, int], Callable[[], Any]]) -> None:
        pool = concurrent.futures.ThreadPoolExecutor()
        try:
            running = {name: pool.submit(job) for name, job in jobs.items()}
            self._compiled |= {name: job.result() for name, job in running.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a signal does not wait for XLA

    def _mask_orders(self, freezing: Freezing | None, epochs: range) -> list[tuple[int, Order]]:
        """Of the steps that make masks: their length, and other batches that are judged."""
        if freezing is None:
            return []
        orders = [self.task.order(self._seed, e) for e in epochs if freezing.makes_mask(e)]
        none = Order(np.zeros((0, 0), np.int32), ())
        judged = [freezing.judged(order) if freezing.looks_further else none for order in orders]
        # A mask every epoch makes many; what is compiled is told apart by the lengths alone.
        by_length = {
            (order.lengths[0], batches.lengths): (order.lengths[0], batches)
            for order, batches in zip(orders, judged, strict=True)
        }
        return list(by_length.values())

    def _compilation(
        self, function: Callable[..., Any], *arguments: Any, donate: bool = False
    ) -> Callable[[], Any]:
        """The call that compiles `function`, which may donate its first argument."""
        return (
            jax.jit(
                function,
                donate_argnums=(0,) if donate else (),
                compiler_options=self._compiler_options,
            )
            .lower(*arguments)
            .compile
        )

    def _show(self, totals: Totals, report: MaskReport | None) -> None:
        """Wait for a step that was dispatched some steps ago, and draw progress if it is time."""
        totals.steps.block_until_ready()
        if self.progress.due():
            check_finite(totals)
            if report is not None:
                frozen = sum(int(leaf.frozen) for leaf in report.leaves.values())
                self.progress.frozen = frozen / self._weights
            self.progress.update(int(totals.steps), *means(totals))


def _named(function: str, state: TrainState) -> str:
    """A function's name among the compiled ones: each form of the state has its own."""
    return f"{function} compact" if is_compact(state.opt_state) else function


class NotFiniteError(Exception):
    """The loss of a step was not finite; `step` counts updates from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


def check_finite(totals: Totals) -> None:
    """Raise `NotFiniteError` if a loss was not finite. Waits for the totals."""
    if int(totals.bad_step):
        raise NotFiniteError(int(totals.bad_step))


def means(totals: Totals) -> tuple[float, float]:
    """Mean loss and accuracy over the steps of the totals."""
    return float(totals.loss) / int(totals.steps), int(totals.correct) / int(totals.counted)

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
from pb_jax.training.constants import Constants, of_changing, split_constants, with_constants
from pb_jax.training.feed import Batches, Resident, Streamed
from pb_jax.training.freezing import Freezing
from pb_jax.training.mask_report import MaskReport, look
from pb_jax.training.mesh import Placement
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
        placement: of the arrays on several devices, as `steps` has it; None: one device.

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
        placement: Placement | None = None,
    ) -> None:
        self.task, self.steps, self.progress = task, steps, progress
        self._seed = seed
        self._scan = scan and len(task.lengths) == 1
        self._placement = placement
        if placement is None:
            self._feed = Resident(task, whole=self._scan)
        else:
            self._feed = Streamed(task, placement, whole=self._scan)
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
        order = self.task.order(self._seed, 1)  # all epochs' are of one shape
        dense, jobs = state, {}
        if is_compact(state.opt_state):
            jobs |= self._training(state, order)
            dense = self._shapes(jax.eval_shape(self._fresh, state.params, state.model_state))
        if dense is state or any(freezing and freezing.releases(epoch) for epoch in epochs):
            jobs |= self._training(dense, order)
        for data, rows, length in {
            batch.length: batch for batch in self._feed.evaluation()
        }.values():
            evaluate = functools.partial(steps.evaluate, length=length)
            jobs["evaluate", length] = compilation(
                evaluate if self._placement is None and not self._scan else steps.evaluate_many,
                state.params,
                state.model_state,
                self._placed(EvalTotals.empty()),
                data,
                rows,
            )
        for length, judged in self._mask_orders(freezing, epochs):
            for at in set(judged.lengths):
                jobs["magnitudes", at] = compilation(
                    functools.partial(steps.add_magnitudes, length=at),
                    state.params,
                    dense,
                    *self._feed.like(judged, at),
                    *self._placed((jnp.int32(0), jnp.float32(0))),
                    donate=True,
                )
            jobs["mask", length] = compilation(
                functools.partial(steps.mask, length=length),
                *(dense, self._placed(Totals.empty()), *self._feed.like(order, length)),
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
        batches, lengths, totals = self._feed.epoch(order), order.lengths, self._placed(totals)
        report, self.compiling = None, 0.0
        done = int(totals.steps)
        if done == 0 and freezing is not None:
            state, totals, report = self._masked(
                state, totals, epoch, order, batches, freezing, stopping
            )
            done = int(report is not None)
        changing, constants = split_constants(self.steps.joined(state))
        pending = collections.deque([totals])
        while done < len(lengths) and not stopping.asked:
            if len(pending) == _IN_FLIGHT:
                self._show(pending.popleft(), report)
            # Under `lax.scan` the first step is one by itself, as it may make a mask.
            rest = self._scan and done == 1
            name, length = ("rest", 0) if rest else ("train", lengths[done])
            program = _named(name, state), length
            changing, totals = self._step(program, changing, constants, totals, batches(done))
            pending.append(totals)
            done = len(lengths) if rest else done + 1
        return self.steps.parted(with_constants(changing, constants)), totals, report

    def evaluate(self, state: TrainState) -> tuple[float, float]:
        """Mean loss and accuracy on what the task evaluates."""
        totals = self._placed(EvalTotals.empty())
        pending = collections.deque([totals])
        for data, rows, length in self._feed.evaluation():
            if len(pending) == _IN_FLIGHT:
                pending.popleft().loss.block_until_ready()
            totals = self._compiled["evaluate", length](
                state.params, state.model_state, totals, data, rows
            )
            pending.append(totals)
        loss, correct, counted = jax.device_get(totals)
        return float(loss) / int(counted), int(correct) / int(counted)

    def frozen(self, state: TrainState) -> float:
        """Share of the weights that are frozen."""
        if is_compact(state.opt_state):
            return (self._weights - trainable(state.opt_state)) / self._weights
        counts = np.asarray(self.local(self._frozen_counts(state.opt_state)))
        return int(counts.sum(dtype=np.int64)) / self._weights

    def local(self, tree: Any) -> Any:
        """Arrays of the state, or of a report, whole and on one device of this process."""
        return tree if self._placement is None else self._placement.local(tree)

    def _step(
        self,
        program: tuple[str, int],
        changing: TrainState,
        constants: Constants,
        totals: Totals,
        batches: Batches,
    ) -> tuple[TrainState, Totals]:
        """One update, or all but the first of an epoch."""
        return self._compiled[program](changing, constants.read, totals, *batches)

    def _masked(
        self,
        state: TrainState,
        totals: Totals,
        epoch: int,
        order: Order,
        batches: Callable[[int], Batches],
        freezing: Freezing,
        stopping: Stopping,
    ) -> tuple[TrainState, Totals, MaskReport | None]:
        """An epoch's first step where it makes a mask; nothing but what is released elsewhere."""
        if stopping.asked:
            return state, totals, None
        if freezing.releases(epoch):
            state = self._released(self._expanded(state))
        if not freezing.makes_mask(epoch):
            return state, totals, None
        dense = self._expanded(state)
        judged = self._judged(dense, order, freezing, stopping)
        if stopping.asked:
            return state, totals, None
        state, totals, report = self._mask(dense, totals, order, batches(0), judged, freezing)
        return self._compacted(state, order, stopping), totals, report

    def _judged(
        self, state: TrainState, order: Order, freezing: Freezing, stopping: Stopping
    ) -> tuple[Arrays, ...]:
        """What a mask is judged by, if not by the gradients of the step that makes it."""
        if not freezing.looks_further:
            return ()
        further = freezing.judged(order)
        batches, weight = self._feed.epoch(further), jnp.float32(1 / len(further.lengths))
        zeros = {name: jnp.zeros(p.shape, p.dtype) for name, p in state.params.items()}
        total = self._placed(zeros)
        for row, length in enumerate(further.lengths):
            if stopping.asked:
                break
            total = self._compiled["magnitudes", length](
                total, state, *batches(row), *self._placed((jnp.int32(row), weight))
            )
        return (total,)

    def _mask(
        self,
        state: TrainState,
        totals: Totals,
        order: Order,
        batches: Batches,
        judged: tuple[Arrays, ...],
        freezing: Freezing,
    ) -> tuple[TrainState, Totals, MaskReport]:
        state, totals, estimate, seen = self._compiled["mask", order.lengths[0]](
            state, totals, *batches, *judged
        )
        mask = mask_of(state.opt_state)
        assert mask is not None
        return state, totals, self.local(look(estimate, seen, mask, freezing.alpha))

    def _expanded(self, state: TrainState) -> TrainState:
        if not is_compact(state.opt_state):
            return state
        return self._placed(self.steps.expanded(self.local(state)))

    def _released(self, state: TrainState) -> TrainState:
        options = {}
        if self._placement is not None:
            options["out_shardings"] = self._placement.shardings(state)
        return jax.jit(self.steps.release, donate_argnums=0, **options)(state)

    def _compacted(self, state: TrainState, order: Order, stopping: Stopping) -> TrainState:
        """The state to go on with after a mask, and what is compiled for it."""
        if self._placement is not None and self._placement.fsdp > 1:
            return state  # every device has but a part of it
        state.step.block_until_ready()  # the mask step is training
        began = time.monotonic()
        self.progress.status("compacting the optimizer's state")
        local, note = self.steps.compacted(self.local(state))
        if is_compact(local.opt_state):
            state = self._placed(local)
        del local
        if is_compact(state.opt_state) and not stopping.asked:
            self.progress.status("compiling")
            self._compile(self._training(state, order))
            note += f", compiled in {time.monotonic() - began:.1f} s"
        if note:
            self.progress.say(note)
        self.compiling = time.monotonic() - began
        return state

    def _training(
        self, state: TrainState, order: Order
    ) -> dict[tuple[str, int], Callable[[], Any]]:
        """The compilations of an epoch's steps for a state, or for the shapes of a dense one."""
        steps = self.steps.narrowed(state)
        changing, constants = split_constants(steps.joined(state))
        before = changing, constants.read, self._placed(Totals.empty())
        jobs = {
            (_named("train", state), length): self._compilation(
                of_changing(functools.partial(steps.train, length=length), constants),
                *before,
                *self._feed.like(order, length),
                donate=True,
            )
            for length in self.task.lengths
        }
        if self._scan and self.task.steps_per_epoch > 1:
            # An epoch is its first step, by itself as it may make a mask, and the rest.
            many = functools.partial(steps.train_many, count=self.task.steps_per_epoch - 1)
            jobs[_named("rest", state), 0] = self._compilation(
                of_changing(many, constants), *before, *self._feed.like(order, 0), donate=True
            )
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
        options = {}
        if self._placement is not None:
            found = jax.eval_shape(function, *arguments)
            options["out_shardings"] = self._placement.shardings(found)
        return (
            jax.jit(
                function,
                donate_argnums=(0,) if donate else (),
                compiler_options=self._compiler_options,
                **options,
            )
            .lower(*arguments)
            .compile
        )

    def _placed(self, tree: Any) -> Any:
        return tree if self._placement is None else self._placement.place(tree)

    def _shapes(self, tree: Any) -> Any:
        return tree if self._placement is None else self._placement.shapes(tree)

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

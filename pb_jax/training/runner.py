"""An epoch's work on a device: the compiled functions, and the data that they read."""

import collections
import concurrent.futures
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.training.batches import evaluation_order, training_order
from pb_jax.training.freezing import Freezing
from pb_jax.training.mask_report import MaskReport, look
from pb_jax.training.progress import Progress
from pb_jax.training.step import (
    EvalTotals,
    Split,
    Steps,
    Totals,
    TrainState,
    frozen_counts,
    mask_of,
)

# Steps dispatched and not yet known to be done. One runs and the next wait, so that the device is
# never idle; more would only make Ctrl-C and the progress line late.
_IN_FLIGHT = 3


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
    """What `fit` needs to know of a dataset."""

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


class Runner:
    """The compiled functions over data on the device.

    Args:
        steps: the pure functions.
        data: what to train and to evaluate on.
        batch_size: of both.
        weights: number of trained weights.
        scan: an epoch under one `lax.scan`, or step by step.
        compiler_options: as `jax.jit` takes them.
        progress: where to show it.
    """

    def __init__(
        self,
        steps: Steps,
        data: DataLike,
        batch_size: int,
        weights: int,
        *,
        scan: bool,
        compiler_options: dict[str, Any] | None,
        progress: Progress,
    ) -> None:
        self.steps = steps
        self.progress = progress
        self.train_data = _on_device(data.train)
        self.test_data = _on_device(data.test)
        self.batch_size = batch_size
        self.weights = weights
        self.examples = len(data.train.labels)
        self.test_examples = len(data.test.labels)
        self.steps_per_epoch = self.examples // batch_size
        rows = jnp.asarray(evaluation_order(self.test_examples, min(batch_size, 1000)))
        self._eval_rows = rows if scan else list(rows)
        self._scan = scan
        self._compiler_options = compiler_options
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._frozen_counts = jax.jit(frozen_counts)

    def compile(self, state: TrainState, freezing: Freezing | None, epochs: range) -> None:
        """Compile what these epochs need, all at once: XLA compiles one function on one core."""
        began = time.monotonic()
        self.progress.status("compiling")
        steps, compilation = self.steps, self._compilation
        order = self._order(0, 1)
        arguments = (state, Totals.empty(), self.train_data, order)
        jobs = {"train": compilation(steps.train, *arguments, donate=True)}
        if self._scan and self.steps_per_epoch > 1:
            # An epoch is its first step, by itself as it may make a mask, and the rest.
            many = functools.partial(steps.train_many, count=self.steps_per_epoch - 1)
            jobs["rest"] = compilation(many, *arguments, donate=True)
        evaluate = steps.evaluate_many if self._scan else steps.evaluate
        jobs["evaluate"] = compilation(
            evaluate,
            state.params,
            state.model_state,
            _no_examples(),
            self.test_data,
            self._eval_rows if self._scan else self._eval_rows[0],
        )
        if freezing is not None and any(map(freezing.makes_mask, epochs)):
            judged = ()
            if freezing.batches > 1:
                judged = (state.params,)
                row, weight = jnp.int32(0), jnp.float32(0)
                jobs["magnitudes"] = compilation(
                    steps.add_magnitudes,
                    state.params,
                    state,
                    self.train_data,
                    order,
                    row,
                    weight,
                    donate=True,
                )
            jobs["mask"] = compilation(steps.mask, *arguments, *judged, donate=True)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = {name: pool.submit(job) for name, job in jobs.items()}
            self._compiled = {name: job.result() for name, job in running.items()}
        self.progress.say(f"compiled in {time.monotonic() - began:.1f} s")

    def train(
        self, state: TrainState, epoch: int, seed: int, freezing: Freezing | None
    ) -> tuple[TrainState, Totals, MaskReport | None]:
        """One epoch."""
        totals, order = Totals.empty(), self._order(seed, epoch)
        report = None
        if freezing is not None and freezing.releases(epoch):
            state = jax.jit(self.steps.release, donate_argnums=0)(state)
        if freezing is not None and freezing.makes_mask(epoch):
            state, totals, report = self._mask(state, totals, order, freezing)
        else:
            state, totals = self._compiled["train"](state, totals, self.train_data, order)
        if self._scan and self.steps_per_epoch > 1:
            state, totals = self._compiled["rest"](state, totals, self.train_data, order)
            return state, totals, report
        pending = collections.deque([totals])
        for _ in range(1, self.steps_per_epoch):
            if len(pending) == _IN_FLIGHT:
                self._show(pending.popleft(), report)
            state, totals = self._compiled["train"](state, totals, self.train_data, order)
            pending.append(totals)
        return state, totals, report

    def evaluate(self, state: TrainState) -> tuple[float, float]:
        """Mean loss and accuracy on the test split."""
        totals = _no_examples()
        pending = collections.deque([totals])
        for rows in [self._eval_rows] if self._scan else self._eval_rows:
            if len(pending) == _IN_FLIGHT:
                pending.popleft().loss.block_until_ready()
            totals = self._compiled["evaluate"](
                state.params, state.model_state, totals, self.test_data, rows
            )
            pending.append(totals)
        loss, correct = jax.device_get(totals)
        return float(loss) / self.test_examples, int(correct) / self.test_examples

    def frozen(self, state: TrainState) -> float:
        """Share of the weights that are frozen."""
        counts = np.asarray(self._frozen_counts(state.opt_state))
        return int(counts.sum(dtype=np.int64)) / self.weights

    def _mask(
        self, state: TrainState, totals: Totals, order: jax.Array, freezing: Freezing
    ) -> tuple[TrainState, Totals, MaskReport]:
        judged = ()
        if freezing.batches > 1:
            batches = min(freezing.batches, self.steps_per_epoch)
            total = jax.tree.map(jnp.zeros_like, state.params)
            for row in range(batches):
                total = self._compiled["magnitudes"](
                    total, state, self.train_data, order, jnp.int32(row), jnp.float32(1 / batches)
                )
            judged = (total,)
        state, totals, estimate, seen = self._compiled["mask"](
            state, totals, self.train_data, order, *judged
        )
        mask = mask_of(state.opt_state)
        assert mask is not None
        return state, totals, look(estimate, seen, mask, freezing.alpha)

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

    def _order(self, seed: int, epoch: int) -> jax.Array:
        return jnp.asarray(training_order(seed, epoch, self.examples, self.batch_size))

    def _show(self, totals: Totals, report: MaskReport | None) -> None:
        """Wait for a step that was dispatched some steps ago, and draw progress if it is time."""
        totals.steps.block_until_ready()
        if self.progress.due():
            check_finite(totals)
            if report is not None:
                frozen = sum(int(leaf.frozen) for leaf in report.leaves.values())
                self.progress.frozen = frozen / self.weights
            self.progress.update(int(totals.steps), *means(totals, self.batch_size))


class NotFiniteError(Exception):
    """The loss of a step was not finite; `step` counts updates from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


def check_finite(totals: Totals) -> None:
    """Raise `NotFiniteError` if a loss was not finite. Waits for the totals."""
    if int(totals.bad_step):
        raise NotFiniteError(int(totals.bad_step))


def means(totals: Totals, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy over the steps of the totals."""
    steps = int(totals.steps)
    return float(totals.loss) / steps, int(totals.correct) / (steps * batch_size)


def _on_device(split: SplitLike) -> Split:
    return Split(jnp.asarray(split.images), jnp.asarray(split.labels, jnp.int32))


def _no_examples() -> EvalTotals:
    return EvalTotals(jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32))

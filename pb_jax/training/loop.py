"""The training loop: full training, a mask, partial backpropagation, checkpoints, metrics."""

import contextlib
import io
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pb_jax.errors import UserError
from pb_jax.files import finite
from pb_jax.training import branch, mask_report, metrics, processes
from pb_jax.training.checkpoints import Checkpoints, read_model
from pb_jax.training.compact import is_compact
from pb_jax.training.freezing import Freezing
from pb_jax.training.interrupted import Interrupted, Part
from pb_jax.training.mesh import Placement
from pb_jax.training.modules import Arrays
from pb_jax.training.plateau import Plateau
from pb_jax.training.progress import Progress
from pb_jax.training.runner import NotFiniteError, Runner, check_finite, means
from pb_jax.training.step import Steps, Totals, TrainState, strong, threshold_of
from pb_jax.training.stopping import StoppedError, Stopping
from pb_jax.training.task import Task


class DivergedError(UserError):
    """The loss is no longer a finite number."""

    status = 1


def fit(
    task: Task,
    optimizer: optax.GradientTransformation,
    workdir: Path,
    *,
    epochs: int,
    learning_rate: optax.Schedule | Plateau,
    freezing: Freezing | None = None,
    start_from: Path | None = None,
    seed: int = 0,
    every_epochs: int = 1,
    keep: int = 2,
    scan: bool | None = None,
    compiler_options: dict[str, Any] | None = None,
    placement: Placement | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Train, or go on with the run that `workdir` holds.

    Everything that a run writes is described in `pb_jax.training`. A run that was killed and
    resumed ends with the same bits as one that was not.

    Ctrl-C and SIGTERM, while it trains: the step is finished, the state is saved, and then the
    signal has the effect that the caller has provided for, such as a KeyboardInterrupt. The next
    call goes on inside the epoch. See `pb_jax.training.stopping`.

    Args:
        task: what is trained on what; its arrays are consumed.
        optimizer: of full training; `freezing` is put around it here.
        workdir: the run's folder; it exists.
        epochs: in all, those of an earlier start included.
        learning_rate: the schedule that the optimizer follows, to be reported; or a `Plateau`,
            which sets the optimizer's hyperparameter `learning_rate` (`optax.inject_hyperparams`).
        freezing: what is frozen and when; None: full training.
        start_from: folder of a run whose epochs before any mask a new run takes as its own.
        seed: of the order of the batches.
        every_epochs: how often to save the latest checkpoint; the best is saved at once.
        keep: latest checkpoints to keep.
        scan: an epoch under one `lax.scan`, or step by step; None: as suits the device.
        compiler_options: for the compiled functions, as `jax.jit` takes them.
        placement: on several devices; None: on one.
        stream: where progress goes; None: standard output.

    Returns:
        The content of `summary.json`.

    Raises:
        DivergedError: a loss was not finite.
        StoppedError: it was stopped by a signal whose handler returned.
        UserError: no readable checkpoint, or `freezing.compact` is True and the optimizer is not
            element-wise.
    """
    if freezing is not None:
        freezing.check_optimizer(optimizer, task.params)
    stack = contextlib.ExitStack()
    # Of several processes all write checkpoints, and the first alone the rest.
    folder, workdir = workdir / "checkpoints", stack.enter_context(processes.own_folder(workdir))
    shown = stream or (sys.stdout if processes.is_first() else io.StringIO())
    progress = Progress(shown, epochs, task.steps_per_epoch, task.batch_size)
    checkpoints = Checkpoints(folder, task.score, keep, warn=progress.say)
    interrupted = Interrupted(checkpoints.folder, warn=progress.say)
    try:
        sizes = {name: leaf.size for name, leaf in task.params.items()}
        steps = Steps(task, optimizer, freezing, placement)
        state = strong(steps.initial(task.params, task.model_state))
        if placement is not None:
            state = placement.place(state)
        records, state, part = _resume(workdir, checkpoints, interrupted, state, progress, epochs)
        if placement is not None and placement.fsdp > 1 and is_compact(state.opt_state):
            state = placement.place(steps.expanded(placement.local(state)))
        if start_from is not None and not int(state.step):
            before = epochs + 1 if freezing is None else min(freezing.start_epoch, epochs + 1)
            state, records = branch.read(start_from, state, before)
            if placement is not None:
                state = placement.place(state)
            for record in records:
                metrics.append(workdir / "metrics.jsonl", record)
            checkpoints.save(state, records[-1])
            part = Part.none(len(records) + 1)
            progress.say(f"going on from epoch {len(records)} of {start_from}")
        if len(records) < epochs and not _over(records, learning_rate, task):
            runner = Runner(
                task,
                steps,
                seed=seed,
                scan=jax.default_backend() != "cpu" if scan is None else scan,
                compiler_options=compiler_options,
                progress=progress,
                placement=placement,
            )
            # An epoch that has begun has its mask, if it makes one.
            first = part.epoch + bool(part.totals.steps)
            runner.compile(state, freezing, range(first, epochs + 1))
            board = metrics.TensorBoard(workdir / "tensorboard", len(records))
            try:
                with Stopping() as stopping:
                    while len(records) < epochs and not _over(records, learning_rate, task):
                        state, part, record = _epoch(
                            runner,
                            state,
                            part,
                            records,
                            freezing,
                            learning_rate,
                            workdir,
                            sizes,
                            stopping,
                        )
                        if record is None:
                            progress.status("saving")
                            saved = interrupted.save(state, part)
                            checkpoints.wait()
                            raise StoppedError(f"stopped; the same again goes on from {saved}")
                        records.append(record)
                        metrics.append(workdir / "metrics.jsonl", record)
                        board.write(record)
                        progress.end(record)
                        last = len(records) == epochs or _over(records, learning_rate, task)
                        if last or _worth_saving(records, task.score, every_epochs):
                            checkpoints.save(state, record)
                            if interrupted.exists():
                                checkpoints.wait()
                                interrupted.remove()
            except NotFiniteError as error:
                checkpoints.wait()
                raise _diverged(error, len(records) + 1, checkpoints) from None
            finally:
                board.close()
            progress.status("writing the last checkpoint")
        checkpoints.wait()
        if len(records) < epochs:
            progress.say(f"ended: {task.score} has not risen for long enough")
        summary = metrics.summarise(records, task.score, sum(sizes.values()), epochs)

        def best() -> tuple[Arrays, Arrays]:
            if summary["best_epoch"] == len(records):
                last = state.params, state.model_state
                return last if placement is None else placement.local(last)
            return read_model(
                checkpoints.folder, summary["best_epoch"], state.params, state.model_state
            )

        progress.status("judging the best epoch")
        summary |= task.finish(best, workdir)
        metrics.write_summary(workdir / "summary.json", summary)
        return summary
    finally:
        progress.close()
        if not processes.lost_peer(sys.exc_info()[1]):  # else what is being saved has no end
            checkpoints.close()
        stack.close()


def _over(
    records: list[dict[str, Any]], learning_rate: optax.Schedule | Plateau, task: Task
) -> bool:
    """Whether the score has not risen for so long that training ends."""
    return isinstance(learning_rate, Plateau) and learning_rate.over(_scores(records, task))


def _scores(records: list[dict[str, Any]], task: Task) -> list[float]:
    return [record[task.score] for record in records]


def _resume(
    workdir: Path,
    checkpoints: Checkpoints,
    interrupted: Interrupted,
    state: TrainState,
    progress: Progress,
    epochs: int,
) -> tuple[list[dict[str, Any]], TrainState, Part]:
    """The lines and the state to go on from, and what has been done of an epoch."""
    # 1. Where it was interrupted, or the latest checkpoint that can be read, or the fresh state.
    part = None
    done = 0
    if (found := interrupted.restore(state, (checkpoints.epochs() or [0])[-1], epochs)) is not None:
        state, part = found
        done = part.epoch - 1
    elif (restored := checkpoints.restore(state)) is not None:
        state, record = restored
        done = record["epoch"]
    if done > epochs:
        raise UserError(
            f"{workdir} holds a run of {done} epochs already, more than epochs={epochs}; "
            "give at least as many, or another --workdir"
        )
    # 2. The lines up to it: what came after will be written again.
    records = processes.on_first(lambda: metrics.rewind(workdir / "metrics.jsonl", done))
    if [record["epoch"] for record in records] != list(range(1, done + 1)):
        raise UserError(
            f"{workdir / 'metrics.jsonl'} lacks lines of epochs 1 to {done}, "
            "which the checkpoint has behind it; put it back, or choose another --workdir"
        )
    # 3. Masks that were made after it: they will be made again.
    for path in workdir.glob("mask_step_*.npz"):
        if mask_report.step_of(path) > int(state.step):
            path.unlink()
    # 4. Say so.
    if part is not None:
        progress.say(f"resuming in epoch {part.epoch}, after step {int(part.totals.steps)} of it")
    elif 0 < done < epochs:
        progress.say(f"resuming after epoch {done}")
    return records, state, part or Part.none(done + 1)


def _epoch(
    runner: Runner,
    state: TrainState,
    part: Part,
    records: list[dict[str, Any]],
    freezing: Freezing | None,
    learning_rate: optax.Schedule | Plateau,
    workdir: Path,
    sizes: dict[str, int],
    stopping: Stopping,
) -> tuple[TrainState, Part, dict[str, Any] | None]:
    """Train and evaluate once.

    Args:
        runner: the compiled functions.
        state: before the epoch, or where it was interrupted.
        part: what has been done of it.
        records: lines of the epochs before.
        freezing: what is frozen and when.
        learning_rate: to be reported, or set.
        workdir: the run's folder.
        sizes: numbers of weights of the leaves, by name.
        stopping: says when to stop.

    Returns:
        The state after the epoch, nothing of the next one, and the line of `metrics.jsonl`; or,
        where `stopping` said so, the state reached, what has been done of the epoch, and None.
    """
    began = time.monotonic() - part.seconds
    task, epoch = runner.task, len(records) + 1
    runner.progress.begin(epoch, part.seconds)
    if isinstance(learning_rate, Plateau):
        rate = np.float32(learning_rate.rate(_scores(records, task)))
        opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.asarray(rate))
        state = state._replace(opt_state=opt_state)
    else:
        rate = learning_rate(epoch * task.steps_per_epoch - 1)
    state, totals, report = runner.train(state, part.totals, epoch, freezing, stopping)
    check_finite(totals)
    began += runner.compiling
    trained = time.monotonic()
    threshold = jax.device_get(threshold_of(state.opt_state))
    if report is not None:
        assert freezing is not None
        mask_report.save(
            workdir,
            report,
            sizes=sizes,
            threshold=threshold,
            alpha=freezing.alpha,
            step=(epoch - 1) * task.steps_per_epoch + 1,
            epoch=epoch,
        )

    def evaluate() -> tuple[tuple[float, float], dict[str, float]]:
        runner.progress.status(f"evaluating epoch {epoch}")
        model = runner.local((state.params, state.model_state))
        return runner.evaluate(state), task.judge(*model)

    if (evaluated := stopping.unless_asked(evaluate)) is None:
        return state, Part(epoch, totals, trained - began), None
    val, scores = evaluated
    frozen = runner.progress.frozen = runner.frozen(state)
    record = epoch_record(
        epoch,
        int(state.step),
        totals,
        val,
        frozen,
        threshold,
        rate,
        examples_per_second=task.steps_per_epoch * task.batch_size / (trained - began),
        seconds=time.monotonic() - began,
    )
    record |= finite({key: float(scores[key]) for key in task.scores})
    return state, Part.none(epoch + 1), processes.on_first(lambda: record)


def epoch_record(
    epoch: int,
    step: int,
    totals: Totals,
    val: tuple[float, float],
    frozen: float,
    threshold: Any,
    rate: Any,
    *,
    examples_per_second: float,
    seconds: float,
) -> dict[str, Any]:
    """The line of `metrics.jsonl`, without the task's own scores.

    Args:
        epoch: from 1.
        step: updates made.
        totals: of the epoch's training.
        val: loss and accuracy of the evaluation.
        frozen: share of the weights.
        threshold: of the mask: a scalar, a dict with one a leaf, or None.
        rate: the learning rate.
        examples_per_second: of training.
        seconds: of all.
    """
    loss, accuracy = means(totals)
    record = {
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": val[0],
        "val_accuracy": val[1],
        "frozen_fraction": frozen,
        "zero_gradient_fraction": float(totals.zeros) / int(totals.steps),
        # A threshold for each leaf is in the mask's report; a line holds one number.
        "threshold": math.nan if threshold is None or isinstance(threshold, dict) else threshold,
        "learning_rate": f"{np.asarray(rate):.7g}",  # float32
        "examples_per_second": examples_per_second,
        "seconds": seconds,
    }
    return {"epoch": epoch, "step": step} | finite({k: float(v) for k, v in record.items()})


def _worth_saving(records: list[dict[str, Any]], score: str, every_epochs: int) -> bool:
    """Every so many epochs, and whenever the score is the best so far."""
    best = metrics.best(records, score) is records[-1]
    return best or len(records) % every_epochs == 0


def _diverged(error: NotFiniteError, epoch: int, checkpoints: Checkpoints) -> DivergedError:
    saved = checkpoints.epochs()
    good = "no checkpoint had been written before"
    if saved:
        folder = checkpoints.folder / str(saved[-1])
        good = f"the last good checkpoint is {folder}, of epoch {saved[-1]}"
    return DivergedError(
        f"the loss of step {error.step} (epoch {epoch}) is not finite; {good}.\n"
        "A smaller optimizer.learning_rate, in another --workdir, is the usual remedy."
    )

"""The training loop: full training, a mask, partial backpropagation, checkpoints, metrics."""

import functools
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pb_jax.errors import UserError
from pb_jax.files import finite
from pb_jax.training import mask_report, metrics
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.freezing import Freezing
from pb_jax.training.modules import Apply, Arrays, functional
from pb_jax.training.progress import Progress
from pb_jax.training.runner import DataLike, NotFiniteError, Runner, check_finite, means
from pb_jax.training.step import Steps, TrainState, threshold_of


class DivergedError(UserError):
    """The loss is no longer a finite number."""


def fit(
    model: nnx.Module,
    data: DataLike,
    optimizer: optax.GradientTransformation,
    workdir: Path,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: optax.Schedule,
    freezing: Freezing | None = None,
    seed: int = 0,
    every_epochs: int = 1,
    keep: int = 2,
    scan: bool | None = None,
    compiler_options: dict[str, Any] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Train a classifier, or go on with the run that `workdir` holds.

    Everything that a run writes is described in `pb_jax.training`. A run that was killed and
    resumed ends with the same bits as one that was not.

    Args:
        model: images (N, H, W, C) to logits (N, classes); its arrays are consumed.
        data: uint8 images with labels; kept on the device as they are.
        optimizer: of full training; `freezing` is put around it here.
        workdir: the run's folder; it exists.
        epochs: in all, those of an earlier start included.
        batch_size: at most the number of training examples.
        learning_rate: the schedule that the optimizer follows, to be reported.
        freezing: what is frozen and when; None: full training.
        seed: of the order of the batches.
        every_epochs: how often to save the latest checkpoint; the best is saved at once.
        keep: latest checkpoints to keep.
        scan: an epoch under one `lax.scan`, or step by step; None: as suits the device.
        compiler_options: for the compiled functions, as `jax.jit` takes them.
        stream: where progress goes; None: standard output.

    Returns:
        The content of `summary.json`.

    Raises:
        DivergedError: a loss was not finite.
        UserError: data smaller than a batch, or no readable checkpoint.
    """
    examples = len(data.train.labels)
    if batch_size > examples:
        raise UserError(
            f"batch_size={batch_size} is more than the {examples} training examples; "
            "take a smaller batch or more data"
        )
    progress = Progress(stream or sys.stdout, epochs, examples // batch_size, batch_size)
    checkpoints = Checkpoints(workdir / "checkpoints", keep, warn=progress.say)
    try:
        apply, params, model_state = functional(model)
        weights = sum(leaf.size for leaf in params.values())
        _check_shapes(apply, params, model_state, data)
        steps = Steps(
            apply,
            optimizer,
            data.mean,
            data.std,
            freezing,
        )
        state = _strong(steps.initial(params, model_state))
        records, state = _resume(workdir, checkpoints, state, progress, epochs)
        if len(records) < epochs:
            runner = Runner(
                steps,
                data,
                batch_size,
                weights,
                scan=jax.default_backend() != "cpu" if scan is None else scan,
                compiler_options=compiler_options,
                progress=progress,
            )
            runner.compile(state, freezing, range(len(records) + 1, epochs + 1))
            sizes = {name: leaf.size for name, leaf in params.items()}
            del params, model_state  # donated with the first step
            board = metrics.TensorBoard(workdir / "tensorboard", len(records))
            try:
                for epoch in range(len(records) + 1, epochs + 1):
                    state, record = _epoch(
                        runner, state, epoch, seed, freezing, learning_rate, workdir, sizes
                    )
                    records.append(record)
                    metrics.append(workdir / "metrics.jsonl", record)
                    board.write(record)
                    progress.end(record)
                    if _worth_saving(records, epochs, every_epochs):
                        checkpoints.save(state, record)
            except NotFiniteError as error:
                checkpoints.wait()
                raise _diverged(error, len(records) + 1, checkpoints) from None
            finally:
                board.close()
            progress.status("writing the last checkpoint")
        checkpoints.wait()
        summary = metrics.summarise(records, weights)
        metrics.write_summary(workdir / "summary.json", summary)
        return summary
    finally:
        progress.close()
        checkpoints.close()


def _check_shapes(apply: Apply, params: Arrays, model_state: Arrays, data: DataLike) -> None:
    """Find out before compiling that a model is made for other images."""
    shape = data.train.images.shape[1:]
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        jax.eval_shape(functools.partial(apply, train=False), params, model_state, images)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the model cannot take images of shape {shape}: {reason}") from error


def _resume(
    workdir: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    progress: Progress,
    epochs: int,
) -> tuple[list[dict[str, Any]], TrainState]:
    """The lines and the state to go on from."""
    # 1. The latest checkpoint that can be read, or the fresh state.
    restored = checkpoints.restore(state)
    done = 0
    if restored is not None:
        state, record = restored
        done = record["epoch"]
    if done > epochs:
        raise UserError(
            f"{workdir} holds a run of {done} epochs already, more than epochs={epochs}; "
            "give at least as many, or another --workdir"
        )
    # 2. The lines up to it: what came after will be written again.
    records = metrics.rewind(workdir / "metrics.jsonl", done)
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
    if 0 < done < epochs:
        progress.say(f"resuming after epoch {done}")
    return records, state


def _epoch(
    runner: Runner,
    state: TrainState,
    epoch: int,
    seed: int,
    freezing: Freezing | None,
    learning_rate: optax.Schedule,
    workdir: Path,
    sizes: dict[str, int],
) -> tuple[TrainState, dict[str, Any]]:
    """Train and evaluate once; returns the new state and the line of `metrics.jsonl`."""
    began = time.monotonic()
    runner.progress.begin(epoch)
    state, totals, report = runner.train(state, epoch, seed, freezing)
    check_finite(totals)
    trained = time.monotonic()
    runner.progress.status(f"evaluating epoch {epoch}")
    val_loss, val_accuracy = runner.evaluate(state)
    frozen = runner.frozen(state)
    threshold = jax.device_get(threshold_of(state.opt_state))
    step = int(state.step)
    if report is not None:
        assert freezing is not None
        mask_report.save(
            workdir,
            report,
            sizes=sizes,
            threshold=threshold,
            alpha=freezing.alpha,
            step=step - runner.steps_per_epoch + 1,
            epoch=epoch,
        )
    runner.progress.frozen = frozen
    loss, accuracy = means(totals, runner.batch_size)
    record = {
        "epoch": epoch,
        "step": step,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "frozen_fraction": frozen,
        "zero_gradient_fraction": float(totals.zeros) / int(totals.steps),
        # A threshold for each leaf is in the mask's report; a line holds one number.
        "threshold": math.nan if threshold is None or isinstance(threshold, dict) else threshold,
        "learning_rate": f"{np.asarray(learning_rate(step - 1)):.7g}",  # float32
        "examples_per_second": runner.steps_per_epoch * runner.batch_size / (trained - began),
        "seconds": time.monotonic() - began,
    }
    whole = ("epoch", "step")
    return state, finite({k: v if k in whole else float(v) for k, v in record.items()})


def _worth_saving(records: list[dict[str, Any]], epochs: int, every_epochs: int) -> bool:
    """Every so many epochs, at the end, and whenever the accuracy is the best so far."""
    epoch, accuracy = records[-1]["epoch"], records[-1]["val_accuracy"]
    best = all(record["val_accuracy"] < accuracy for record in records[:-1])
    return best or epoch == epochs or epoch % every_epochs == 0


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


def _strong(state: TrainState) -> TrainState:
    """Without weak types, so that a restored state is of the same type as a fresh one."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.array(leaf, dtype=leaf.dtype)
        ),
        state,
    )

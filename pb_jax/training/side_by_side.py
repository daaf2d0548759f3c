"""Runs that differ in their seed, side by side: one compiled program trains them all.

On an accelerator a small network leaves most of the device idle, and each run has to be compiled.
Here they train as one `Ensemble`. Each ends, within what rounding makes of it, as if it had been
alone, and leaves the same files, but for checkpoints and TensorBoard events.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import optax

from pb_jax.files import read_json, write_json
from pb_jax.training import mask_report, metrics
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.ensemble import Ensemble, Member
from pb_jax.training.progress import Progress
from pb_jax.training.stopping import StoppedError, Stopping
from pb_jax.training.task import Task

_CHOICE = "side_by_side.json"


def fit_together(
    task: Task,
    members: Sequence[Member],
    optimizer: optax.GradientTransformation,
    folder: Path,
    *,
    epochs: int,
    learning_rate: optax.Schedule,
    side_by_side: str = "vmap",
    every_epochs: int = 10,
    enough: Callable[[float], bool] = lambda seconds: False,
    compiler_options: dict[str, Any] | None = None,
    stream: TextIO | None = None,
) -> list[dict[str, Any]] | None:
    """Train several runs at once, or go on with those that the folders hold.

    A run whose loss is no longer finite goes on, to no purpose, beside the others, and its summary
    says so with a `final_val_accuracy` of what it still gets right.

    Ctrl-C and SIGTERM, while they train: the epoch is finished and saved first; see `fit`.

    Args:
        task: what is trained on what; its own initial arrays are not used.
        members: the runs, with models and optimizers of the same structure.
        optimizer: of full training.
        folder: for the checkpoints of all members together; it exists.
        epochs: in all, those of an earlier start included.
        learning_rate: the schedule that the optimizer follows.
        side_by_side: one of `ensemble.SIDE_BY_SIDE`. Which is faster depends on network and device.
        every_epochs: how often to save a checkpoint.
        enough: called after each epoch with the seconds it took; True saves and stops.
        compiler_options: as `jax.jit` takes them.
        stream: where progress goes; None: standard output.

    Returns:
        What the runs' `summary.json` hold, in the order of the members; None where `enough` said
        so before the end. `seconds` are a member's share of the time of all.

    Raises:
        ValueError: members that cannot be stacked, or a task with batches of several lengths.
        UserError: no readable checkpoint.
    """
    if side_by_side == "faster" and (folder / _CHOICE).exists():  # found out before
        seconds = read_json(folder / _CHOICE)
        side_by_side = min(seconds, key=seconds.__getitem__)
    ensemble = Ensemble(task, members, optimizer, side_by_side, compiler_options)
    progress = Progress(stream or sys.stdout, epochs, task.steps_per_epoch, task.batch_size)
    checkpoints = Checkpoints(folder / "checkpoints", task.score, 1, warn=progress.say)
    try:
        state = ensemble.initial()
        restored = checkpoints.restore(state)
        done = 0
        if restored is not None:
            state, record = restored
            done = record["epoch"]
            progress.say(f"resuming after epoch {done}")
        records = [metrics.rewind(member.workdir / "metrics.jsonl", done) for member in members]
        for member in members:
            for path in member.workdir.glob("mask_step_*.npz"):
                if mask_report.step_of(path) > done * task.steps_per_epoch:
                    path.unlink()
        if done < epochs:
            began = time.monotonic()
            ensemble.compile(state, range(done + 1, epochs + 1))
            progress.say(f"compiled in {time.monotonic() - began:.1f} s")
            if len(ensemble.ways) > 1:
                seconds = ensemble.choose(state)
                write_json(folder / _CHOICE, seconds)
                listed = ", ".join(f"{way} {spent:.2f} s" for way, spent in seconds.items())
                progress.say(f"an epoch by {listed}")
        with Stopping() as stopping:
            while done < epochs:
                done += 1
                rate = learning_rate(done * task.steps_per_epoch - 1)
                state, lines = ensemble.epoch(state, done, rate)
                for member, lines_before, line in zip(members, records, lines, strict=True):
                    lines_before.append(line)
                    metrics.append(member.workdir / "metrics.jsonl", line)
                progress.say(_line(done, epochs, lines))
                full = enough(len(lines) * lines[0]["seconds"])
                last = done == epochs or full or stopping.asked
                if last or done % every_epochs == 0:
                    mean = float(np.mean([line["val_accuracy"] for line in lines]))
                    checkpoints.save(state, {"epoch": done, task.score: mean})
                if stopping.asked:
                    checkpoints.wait()
                    raise StoppedError(f"stopped after epoch {done}; the same again goes on")
                if last and done < epochs:
                    return None
        checkpoints.wait()
        return [
            _finish(member, lines, task.score, ensemble.weights, epochs)
            for member, lines in zip(members, records, strict=True)
        ]
    finally:
        progress.close()
        checkpoints.close()


def _line(epoch: int, epochs: int, lines: Sequence[dict[str, Any]]) -> str:
    accuracies = " ".join(f"{line['val_accuracy']:.2%}" for line in lines)
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  val {accuracies}  "
        f"{sum(line['examples_per_second'] for line in lines):,.0f} ex/s  "
        f"{sum(line['seconds'] for line in lines):.1f} s"
    )


def _finish(
    member: Member, records: list[dict[str, Any]], score: str, weights: int, epochs: int
) -> dict[str, Any]:
    summary = metrics.summarise(records, score, weights, epochs)
    metrics.write_summary(member.workdir / "summary.json", summary)
    return summary

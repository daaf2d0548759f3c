"""Running the runs of a study as processes, one after the other or side by side."""

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from pb_jax.study.plan import Run
from pb_jax.study.results import read_result
from pb_jax.training import metrics
from pb_jax.training.progress import Progress, clock

LOG = "log.txt"
_POLL = 0.1  # seconds between two looks at the processes
_LOOK = 2.0  # seconds between two looks at how far they are
_GRACE = 60.0  # seconds that a process has to end when it is asked to

Command = Callable[[Run, float | None, Path | None], list[str]]
"""The command line of a run, given the share that another has frozen, and where it starts from."""


class Failure(NamedTuple):
    """A run that has not ended well, and why."""

    run: Run
    reason: str


class Executor:
    """Runs what is not finished yet.

    Runs that take another's frozen share, or go on from its epochs, wait for it. A failed run does
    not stop the others.

    Args:
        folder: of the study.
        command: of a run.
        epochs: how many a run is to have.
        starts: by the folder of a run, the one whose epochs it goes on from.
        jobs: processes at a time; they share the cores, each has its own.
        stream: where progress goes.
    """

    def __init__(
        self,
        folder: Path,
        command: Command,
        epochs: Callable[[Run], int],
        *,
        starts: Mapping[str, Run] | None = None,
        jobs: int = 1,
        stream: TextIO,
    ) -> None:
        self._folder, self._command, self._epochs = folder, command, epochs
        self._starts = starts or {}
        self._jobs = jobs
        self._progress = Progress(stream, 1, 1, 1)
        self._runs: dict[str, Run] = {}
        self._began: dict[str, int] = {}

    def run(self, runs: Sequence[Run]) -> list[Failure]:
        """Run them all, and those that they start from; returns those that failed.

        Raises:
            KeyboardInterrupt: and whatever else came, after the processes have ended.
        """
        self._runs = {run.folder: run for run in runs}
        waiting = [run for run in runs if not self._finished(run)]
        total = len(runs)
        if len(waiting) < total:
            self._progress.say(f"{total - len(waiting)} of {total} runs are finished already")
        starts = {start.folder: start for run in waiting if (start := self._start_of(run))}
        starts = [start for start in starts.values() if not self._finished(start)]
        waiting, total = starts + waiting, total + len(starts)
        failures: list[Failure] = []
        running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
        shown = 0.0
        try:
            while waiting or running:
                for slot in set(range(self._jobs)) - running.keys():
                    run = self._next(waiting, [r for r, _ in running.values()], failures)
                    if run is not None:
                        with _uninterrupted():
                            running[slot] = (run, self._start(run, slot))
                for slot, (run, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        number = total - len(waiting) - len(running)
                        self._end(run, process.returncode, failures, f"{number}/{total}")
                        shown = 0.0
                if time.monotonic() - shown > _LOOK:
                    shown = time.monotonic()
                    self._show(waiting, [run for run, _ in running.values()])
                if running:
                    time.sleep(_POLL)
        finally:
            _stop([process for _, process in running.values()])
            self._progress.close()
        return failures

    def _finished(self, run: Run) -> bool:
        result = read_result(self._folder, run)
        wanted = (result.summary.get("epochs"), result.summary.get("epochs_asked"))
        return result.state == "finished" and self._epochs(run) in wanted

    def _next(
        self, waiting: list[Run], running: Sequence[Run], failures: list[Failure]
    ) -> Run | None:
        """Take the first run that can start; those that never can are failures."""
        failed = {failure.run.folder for failure in failures}
        busy = {run.folder for run in (*waiting, *running)}
        for run in list(waiting):
            needed = {} if run.share_of is None else {run.share_of: "takes the frozen share of"}
            if start := self._start_of(run):
                needed[start.folder] = "goes on from"
            if lacking := sorted(failed & needed.keys()):
                waiting.remove(run)
                failures.append(Failure(run, f"it {needed[lacking[0]]} {lacking[0]}"))
                self._progress.say(f"not run: {run.title}, as it needs {lacking[0]}")
                failed.add(run.folder)
            elif not busy & needed.keys():
                waiting.remove(run)
                return run
        return None

    def _start_of(self, run: Run) -> Run | None:
        """The run that it goes on from; None where it has epochs of its own already."""
        done = _epochs_done(self._folder / run.folder)
        return None if done else self._starts.get(run.folder)

    def _start(self, run: Run, slot: int) -> subprocess.Popen[bytes]:
        share = None
        if run.share_of is not None:
            other = read_result(self._folder, self._runs[run.share_of])
            share = float(other.summary["frozen_fraction"])
        workdir = self._folder / run.folder
        workdir.mkdir(parents=True, exist_ok=True)
        self._began[run.folder] = _epochs_done(workdir)
        start = self._start_of(run)
        source = None if start is None else self._folder / start.folder
        command = self._command(run, share, source)
        with (workdir / LOG).open("ab") as log, _cores(slot, self._jobs):
            return subprocess.Popen(  # noqa: S603 - the study's own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through `_stop`, once
            )

    def _end(self, run: Run, status: int, failures: list[Failure], number: str) -> None:
        result = read_result(self._folder, run)
        if status == 0 and result.state == "finished":
            summary = result.summary
            self._progress.say(
                f"{number}  {run.title}: {summary['final_val_accuracy']:.2%}, "
                f"{summary['frozen_fraction']:.1%} frozen, {clock(summary['seconds'])}"
            )
            return
        log = self._folder / run.folder / LOG
        reason = f"exit status {status}; its output is in {log}"
        failures.append(Failure(run, reason))
        self._progress.say(f"{number}  {run.title}: FAILED, {reason}\n{_tail(log)}")

    def _show(self, waiting: Sequence[Run], running: Sequence[Run]) -> None:
        done = {run.folder: _epochs_done(self._folder / run.folder) for run in (*running, *waiting)}
        left = sum(max(self._epochs(run) - done[run.folder], 0) for run in (*running, *waiting))
        rate = self._seconds_an_epoch()
        text = "; ".join(
            f"{run.title}: epoch {done[run.folder]}/{self._epochs(run)}" for run in running
        )
        remaining = "" if rate is None else f"; left {clock(left * rate / self._jobs)}"
        self._progress.status(f"{text}; {len(waiting)} runs wait{remaining}")

    def _seconds_an_epoch(self) -> float | None:
        """From the runs that this process has started."""
        seconds = []
        for folder, before in self._began.items():
            records = metrics.read(self._folder / folder / "metrics.jsonl")
            seconds += [record["seconds"] for record in records[before:]]
        return math.fsum(seconds) / len(seconds) if seconds else None


def _epochs_done(workdir: Path) -> int:
    try:
        return len(metrics.read(workdir / "metrics.jsonl"))
    except ValueError:  # the run itself will say so
        return 0


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until a process that was started is known: else nobody would end it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C never comes here
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _cores(slot: int, jobs: int) -> Iterator[None]:
    """Start processes on a part of the cores: two that fight for all are slower than either."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, share_of_cores(cores, slot, jobs))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def share_of_cores(cores: Sequence[int], slot: int, jobs: int) -> list[int]:
    """The cores of one of `jobs` processes: as even as can be, at least one.

    Example:
        >>> [share_of_cores([0, 1, 2, 3, 4], slot, 2) for slot in range(2)]
        [[0, 2, 4], [1, 3]]
        >>> share_of_cores([0, 1], 2, 3)
        [0]
    """
    return list(cores[slot::jobs]) or [cores[slot % len(cores)]]


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask processes to end, as they can be resumed then, and wait."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path, lines: int = 5) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in text[-lines:])

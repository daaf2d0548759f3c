"""Runs of train.py that are killed at random moments, again and again, and end as if they had not.

    python -m tests.faults [--kills 50] [--stops 12] [--seed 0] [--out results/faults.json]

Two small experiments with LeNet-5 on digits take turns: one mask and compact state (delta
checkpoints), and a mask made anew every other epoch (dense state, a checkpoint every third epoch).
Each is first run undisturbed, twice: with and without compiling. Then runs are killed, by SIGKILL
or by SIGTERM or SIGINT, and started again, until they end; then the next run begins. A moment is a
call of one of `PLACES`, drawn at random, and a delay, drawn at random up to twice what such a call
takes; this process sends the signal, so that the delay is also what the system makes of it.

After each kill the lines of `metrics.jsonl` must be the first ones of the undisturbed run; at the
end all lines, the last checkpoint's arrays and its base, the masks and the summary must be the same
to the bit, but for durations.

Every start is a process of its own, forked from one that has imported the modules and done nothing
with them, and it finds what XLA has compiled for the undisturbed run in a cache: both save most of
its time. Figures are not drawn.
"""

import argparse
import collections
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import train
from pb_jax import reports
from pb_jax.files import write_json
from pb_jax.training import delta, loop, mask_report, metrics, stored
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.interrupted import Interrupted
from pb_jax.training.runner import Runner
from tests import forked

ROOT = Path(__file__).parents[1]
EPOCHS = 8
COMMON = [
    *("--config", "configs/digits_pb.py", f"--config.epochs={EPOCHS}", "--config.batch_size=20"),
    *("--config.dataset.limit_train=200", "--config.dataset.limit_eval=100"),
]
EXPERIMENTS = {
    "delta": [*COMMON, "--config.checkpoint.every_epochs=1"],
    "dense": [
        *(*COMMON, "--config.freeze.refresh_epochs=2", "--config.freeze.batches=3"),
        "--config.checkpoint.every_epochs=3",
    ],
}
PLACES: dict[str, tuple[Any, str]] = {
    "step": (Runner, "_step"),
    "mask step": (Runner, "_mask"),
    "gradients for a mask": (Runner, "_judged"),
    "compaction": (Runner, "_compacted"),
    "mask report": (mask_report, "save"),
    "evaluation": (Runner, "evaluate"),
    "line of metrics": (metrics, "append"),
    "checkpoint": (Checkpoints, "_save"),
    "base": (delta.Bases, "write"),
    "interrupted state": (Interrupted, "save"),
    "interrupted state removed": (Interrupted, "remove"),
    "resumption": (loop, "_resume"),
}
AIMS = {  # how often each is chosen
    "step": 8,
    "mask step": 5,
    "gradients for a mask": 1,
    "compaction": 2,
    "mask report": 1,
    "evaluation": 2,
    "line of metrics": 2,
    "checkpoint": 6,
    "written in the background": 6,
    "base": 1,
    "resumption": 1,
}
_LABEL = 64


class Moment(NamedTuple):
    """When a run is disturbed: in the `call`-th call of a place, after `delay` seconds."""

    number: signal.Signals
    aim: str
    call: int
    delay: float


class Start(NamedTuple):
    """What became of a process: its exit status, and where it was when the signal was sent."""

    status: int
    where: str | None


class Harness:
    """The runs, in a folder of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self._seconds: dict[str, dict[str, float]] = {}
        self._calls: dict[str, dict[str, int]] = {}
        self.where: collections.Counter[str] = collections.Counter()
        self.half_written = self.half_lines = 0
        self.sent: collections.Counter[str] = collections.Counter()

    def undisturbed(self, experiment: str) -> None:
        """The run that others are compared with; what its calls take, where all is compiled."""
        log, first = self.folder / f"{experiment}.json", self.folder / f"{experiment}_first"
        for workdir in (first, self.whole(experiment)):
            if self.start(experiment, workdir, None, log).status:
                raise SystemExit(f"the undisturbed run failed: see {self.folder}")
        self.compare(experiment, first)
        measured = {name: spent for name, spent in json.loads(log.read_text()).items() if spent}
        self._seconds[experiment] = {
            place: statistics.median(spent) for place, spent in measured.items()
        }
        self._calls[experiment] = {place: len(spent) for place, spent in measured.items()}

    def whole(self, experiment: str) -> Path:
        """The folder of the undisturbed run."""
        return self.folder / f"{experiment}_whole"

    def moment(self, experiment: str, number: signal.Signals, done: int) -> Moment:
        """A random moment of a run that has so many epochs behind it."""
        calls = self._calls[experiment]
        known = [aim for aim in AIMS if _place(aim) in calls]
        aim = self.rng.choices(known, [AIMS[aim] for aim in known])[0]
        left = calls[_place(aim)] * (EPOCHS - done) // EPOCHS
        call = self.rng.randint(1, max(left, 1))
        most = 0.3 if aim != _place(aim) else 2 * self._seconds[experiment][aim]
        return Moment(number, aim, call, self.rng.uniform(0, most))

    def disturb(self, experiment: str, workdir: Path, number: signal.Signals) -> int:
        """Start or resume a run and send it a signal; returns its exit status.

        Raises:
            AssertionError: it ended in a way that it must not, or its lines are not the first ones
                of the undisturbed run.
        """
        before = len(_lines(workdir))
        moment = self.moment(experiment, number, before)
        status, where = self.start(experiment, workdir, moment)
        expected = {0, -number} if number == signal.SIGKILL else {0, 128 + number}
        assert status in expected, f"{status} after {moment}: {self._log(workdir)}"
        if where is not None and status:
            self.sent[number.name] += 1
            self.where[where] += 1
        # Not "interrupted": orbax cleans its unfinished folders up when it opens them again.
        unfinished = list((workdir / "checkpoints").glob("**/*.orbax-checkpoint-tmp"))
        self.half_written += bool(unfinished and status)
        path = workdir / "metrics.jsonl"
        self.half_lines += path.exists() and not path.read_bytes().endswith(b"\n")
        lines = _lines(workdir)
        assert lines == _lines(self.whole(experiment))[: len(lines)], f"other lines after {moment}"
        return status

    def compare(self, experiment: str, workdir: Path) -> None:
        """Raise an AssertionError unless a run has ended as the undisturbed one.

        In a process of its own: this one must not use JAX, as it forks others.
        """
        status = forked.status_of(forked.start(lambda: self._compare(experiment, workdir)))
        assert status == 0, f"{workdir} has ended otherwise than {self.whole(experiment)}"

    def _compare(self, experiment: str, workdir: Path) -> None:
        whole = self.whole(experiment)
        assert _lines(workdir) == _lines(whole)
        assert [line["epoch"] for line in _lines(workdir)] == list(range(1, EPOCHS + 1))
        ends = [_end(folder) for folder in (workdir, whole)]
        assert ends[0].keys() == ends[1].keys(), sorted(ends[0].keys() ^ ends[1].keys())
        for name, value in ends[0].items():
            assert value == ends[1][name], f"{name} differs"

    def start(
        self, experiment: str, workdir: Path, moment: Moment | None, measured: Path | None = None
    ) -> Start:
        """Run a process to its end, or to the moment and then to its end."""
        marks = mmap.mmap(-1, _LABEL)
        reading, writing = os.pipe()

        def child() -> int:
            os.close(reading)
            return self._train(experiment, workdir, moment, marks, writing, measured)

        process = forked.start(child)
        os.close(writing)
        where = None
        try:
            if moment is not None and os.read(reading, 1):
                time.sleep(moment.delay)
                os.kill(process, moment.number)
                where = marks[:].rstrip(b"\0").decode() or "between them"
            return Start(forked.status_of(process), where)
        finally:
            os.close(reading)

    def _train(
        self,
        experiment: str,
        workdir: Path,
        moment: Moment | None,
        marks: mmap.mmap,
        pipe: int,
        measured: Path | None,
    ) -> int:
        """What the process does that trains."""
        forked.output_to(f"{workdir}.log")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        reports.write_figures = lambda *_, **__: []
        spent: dict[str, list[float]] = {}
        for place, (owner, name) in PLACES.items():
            setattr(owner, name, _watched(getattr(owner, name), place, moment, marks, pipe, spent))
        command = ["train.py", *EXPERIMENTS[experiment], "--workdir", str(workdir)]
        jax.config.update("jax_compilation_cache_dir", str(self.folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        status = train.main(command)
        if measured is not None:
            measured.write_text(json.dumps(spent))
        return status

    def _log(self, workdir: Path) -> str:
        return Path(f"{workdir}.log").read_text()[-3000:]


def _place(aim: str) -> str:
    return "checkpoint" if aim == "written in the background" else aim


def _watched(
    inner: Callable[..., Any],
    place: str,
    moment: Moment | None,
    marks: mmap.mmap,
    pipe: int,
    spent: dict[str, list[float]],
) -> Callable[..., Any]:
    """A function that says when it works, and when its moment has come."""
    calls = spent.setdefault(place, [])
    due = moment.call if moment is not None and _place(moment.aim) == place else 0
    behind = moment is not None and moment.aim != place

    def call(*args: Any, **kwargs: Any) -> Any:
        now = len(calls) + 1 == due
        if now and not behind:
            os.write(pipe, b"x")
        before = marks[:]
        marks[:] = place.encode().ljust(_LABEL, b"\0")
        began = time.monotonic()
        try:
            return inner(*args, **kwargs)
        finally:
            calls.append(time.monotonic() - began)
            marks[:] = before
            if now and behind:
                os.write(pipe, b"x")

    return call


def _lines(workdir: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "examples_per_second")}
        for line in metrics.read(workdir / "metrics.jsonl")
    ]


def _end(workdir: Path) -> dict[str, Any]:
    """All that must be the same at the end of a run."""
    checkpoint = workdir / "checkpoints" / str(EPOCHS)
    found: dict[str, Any] = {
        name: (array.dtype, array.shape, array.tobytes())
        for name, array in stored.arrays(checkpoint).items()
    }
    if stored.is_delta(checkpoint):
        found["base"] = stored.item(checkpoint, stored.DELTA)["base"]["sha256"]
        delta.Bases(workdir / "checkpoints").read(stored.item(checkpoint, stored.DELTA)["base"])
    for path in sorted(workdir.glob("mask_step_*.npz")):
        with np.load(path) as content:
            found[path.name] = {name: content[name].tobytes() for name in content.files}
    summary = json.loads((workdir / "summary.json").read_text())
    found["summary"] = {k: v for k, v in summary.items() if k not in ("seconds", "date")}
    left = {path.name for path in (workdir / "checkpoints").iterdir()} - {"base"}
    assert left == {
        path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    }
    return found


def run(
    kills: int,
    stops: int,
    seed: int,
    experiments: Sequence[str] = tuple(EXPERIMENTS),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Disturb runs as often as is asked for; returns what `results/faults.json` holds."""
    began = time.monotonic()
    signals = [signal.SIGKILL] * kills
    signals += [(signal.SIGTERM, signal.SIGINT)[n % 2] for n in range(stops)]
    with _folder() as folder:
        harness = Harness(folder, seed)
        harness.rng.shuffle(signals)
        for experiment in experiments:
            harness.undisturbed(experiment)
            say(f"{experiment}: undisturbed, {time.monotonic() - began:.0f} s")
        runs = resumed = 0
        while signals:
            experiment = experiments[runs % len(experiments)]
            workdir = folder / f"{experiment}_{runs}"
            starts = 0
            while True:
                before = sum(harness.sent.values())
                if signals:
                    status = harness.disturb(experiment, workdir, signals[-1])
                else:
                    status = harness.start(experiment, workdir, None).status
                starts += 1
                if sum(harness.sent.values()) > before:
                    signals.pop()
                if status == 0:
                    break
            harness.compare(experiment, workdir)
            runs, resumed = runs + 1, resumed + starts - 1
            say(
                f"run {runs}, {experiment}: {starts} starts, the same to the bit; "
                f"{dict(harness.sent)}, {time.monotonic() - began:.0f} s"
            )
            shutil.rmtree(workdir)
    return {
        "command": f"python -m tests.faults --kills {kills} --stops {stops} --seed {seed}",
        "date": date.today().isoformat(),
        "hardware": metrics.hardware(),
        "versions": metrics.versions(),
        "signals": dict(sorted(harness.sent.items())),
        "runs": runs,
        "resumptions": resumed,
        "where": dict(harness.where.most_common()),
        "checkpoints_half_written": harness.half_written,
        "lines_half_written": harness.half_lines,
        "outcome": "every run ended as the undisturbed one, to the bit",
        "seconds": round(time.monotonic() - began),
    }


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that stays where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="pb_jax_faults_"))
    try:
        yield folder
    except BaseException:
        print(f"left for inspection: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "faults.json")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=[*EXPERIMENTS])
    options = parser.parse_args()
    os.chdir(ROOT)
    result = run(options.kills, options.stops, options.seed, options.experiments)
    write_json(options.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

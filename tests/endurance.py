"""A long run: memory stays flat, and nothing is compiled once a phase is under way.

    python -m tests.endurance [--epochs 1000] [--out results/endurance.json]

A tiny network is trained for so many epochs, with everything that `train.py` does in each of them:
batches, evaluation, a line of metrics, TensorBoard's events, a checkpoint. Three runs, each a
process of its own: "masks" has a new mask every 100 epochs, and trains in full again for the last
tenth; "compact" has one mask and compact state (delta checkpoints); "seldom" is like "masks" and
saves every 100 epochs only. After each epoch the process's own resident memory is read (RssAnon:
without the pages of files), and what JAX has compiled in it is counted by `jax.monitoring`.

It fails if anything is compiled after the second epoch of a phase (full training, frozen, full
training again), or if memory in the ninth tenth is above that in the fifth by more than 1 % and
64 KiB for each checkpoint between: orbax and tensorstore do not free all that one takes. Earlier,
memory falls: the allocator returns what compiling took.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import jax

from pb_jax.files import write_json
from pb_jax.training import metrics
from tests import forked
from tests.tiny_training import tiny_fit, tiny_freezing

ROOT = Path(__file__).parents[1]
START = 3  # the epoch that begins with the first mask
MOST_GROWTH = 0.01
MOST_OF_A_CHECKPOINT = 2**16
_COMPILED = "/jax/core/compile/backend_compile_duration"


def freezing(name: str, epochs: int) -> dict[str, Any]:
    """Options of an experiment."""
    if name == "compact":
        return {"start_epoch": START, "compact": True}
    return {
        "start_epoch": START,
        "refresh_epochs": max(epochs // 10, 1),
        "stop_epoch": _stop(epochs),
    }


def every(name: str, epochs: int) -> int:
    """Epochs from one checkpoint to the next."""
    return max(epochs // 10, 1) if name == "seldom" else 1


def phases(name: str, epochs: int) -> list[int]:
    """The epochs in which something new begins."""
    return [1, START] if name == "compact" else [1, START, _stop(epochs)]


def _stop(epochs: int) -> int:
    return epochs - epochs // 10


def measure(name: str, epochs: int, workdir: Path) -> dict[str, Any]:
    """Train in this process; returns resident bytes and compilations of each epoch."""
    resident: list[int] = []
    compiled: list[int] = [0]
    status = Path("/proc/self/status")
    append = metrics.append

    def listen(event: str, _: float, **__: Any) -> None:
        compiled[-1] += event == _COMPILED

    def noted(path: Path, record: dict[str, Any]) -> None:
        append(path, record)
        (line,) = (line for line in status.read_text().splitlines() if "RssAnon" in line)
        resident.append(1024 * int(line.split()[1]))
        compiled.append(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    metrics.append = noted
    options = {"every_epochs": every(name, epochs)}
    tiny_fit(workdir, epochs, freezing=tiny_freezing(**freezing(name, epochs)), **options)
    return {"resident": resident, "compiled": compiled[:epochs]}


def judge(name: str, found: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The numbers that say how flat it is; `failed` says what is wrong."""
    resident, compiled = found["resident"], found["compiled"]
    tenth = epochs // 10
    early, late = (statistics.median(resident[n * tenth : (n + 1) * tenth]) for n in (4, 8))
    allowed = {epoch + more for epoch in phases(name, epochs) for more in (0, 1)}
    others = {epoch: n for epoch, n in enumerate(compiled, 1) if n and epoch not in allowed}
    failed = []
    if others:
        failed.append(f"compiled in epochs {others}")
    saved = 0.4 * epochs / every(name, epochs)
    if late - early > early * MOST_GROWTH + saved * MOST_OF_A_CHECKPOINT:
        failed.append(f"memory has grown by {late / early - 1:.1%}")
    shown = sorted({1, 2, tenth, *range(epochs // 4, epochs + 1, max(epochs // 4, 1)), epochs})
    return {
        "resident_mb": {str(epoch): round(resident[epoch - 1] / 1e6, 1) for epoch in shown},
        "growth_mb": round((late - early) / 1e6, 2),
        "growth": round(late / early - 1, 5),
        "bytes_an_epoch": round((late - early) / (0.4 * epochs)),
        "compilations": sum(compiled),
        "compiled_in_epochs": {str(e): n for e, n in enumerate(compiled, 1) if n},
        "compilations_after_second_epochs": sum(others.values()),
        "failed": failed,
    }


def run(name: str, epochs: int) -> dict[str, Any]:
    """Train in a process of its own; returns what `judge` does."""
    with tempfile.TemporaryDirectory(prefix="pb_jax_endurance_") as folder:
        answer = Path(folder) / "answer.json"

        def work() -> None:
            answer.write_text(json.dumps(measure(name, epochs, Path(folder) / "run")))

        if forked.status_of(forked.start(work)):
            raise SystemExit(f"{name}: the run failed")
        return judge(name, json.loads(answer.read_text()), epochs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    runs = {name: run(name, options.epochs) for name in ("masks", "compact", "seldom")}
    result = {
        "command": f"python -m tests.endurance --epochs {options.epochs}",
        "date": date.today().isoformat(),
        "hardware": metrics.hardware(),
        "versions": metrics.versions(),
        "epochs": options.epochs,
        "runs": runs,
        "seconds": round(time.monotonic() - began),
    }
    if options.out is not None:
        write_json(options.out, result)
    print(json.dumps(result, indent=2))
    return any(one["failed"] for one in runs.values())


if __name__ == "__main__":
    sys.exit(main())

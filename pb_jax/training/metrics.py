"""What a run writes down: `metrics.jsonl`, TensorBoard events, `summary.json`."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax

from pb_jax.errors import UserError
from pb_jax.files import finite, read_json, replacing, write_json

KEYS: tuple[str, ...] = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "frozen_fraction",
    "zero_gradient_fraction",
    "threshold",
    "learning_rate",
    "examples_per_second",
    "seconds",
)
"""The keys of a line of `metrics.jsonl`, in order; `pb_jax.training` says what they mean."""

SUMMARY: tuple[str, ...] = (
    "final_val_accuracy",
    "best_val_accuracy",
    "best_epoch",
    "frozen_fraction",
    "threshold",
    "parameters",
    "seconds",
    "epochs",
    "steps",
)
"""The numbers that every `summary.json` has, of runs that ended by themselves."""

_WHOLE = ("epoch", "step", "epochs", "epochs_asked", "best_epoch", "steps", "parameters")
_NEVER_NULL = (
    "val_accuracy",
    "frozen_fraction",
    "seconds",
    "final_val_accuracy",
    "best_val_accuracy",
)
_SCORES = ("train_", "val_", "test_")
_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that was cut short by a kill does not count.

    Raises:
        MetricsError: a line other than the last is damaged, or nothing can be read.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise MetricsError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_checked(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # nothing, not even a line's end, comes after it
                break
            raise MetricsError(f"{path} is damaged (line {number}: {error})") from None
    return records


class MetricsError(UserError, ValueError):
    """A `metrics.jsonl` or `summary.json` is not as it was written."""


def _checked(record: Any) -> dict[str, Any]:
    """`record`, if it has numbers under all `KEYS`."""
    if not isinstance(record, dict):
        raise ValueError("no object")
    _check_numbers(record, KEYS)
    return record


def _check_numbers(record: dict[str, Any], needed: Sequence[str]) -> None:
    """Raise a ValueError unless what is to be a number is one, and the keys that are needed are."""
    for key in needed:
        if key not in record:
            raise ValueError(f"no {key}")
    for key, value in record.items():
        if key in _WHOLE:
            right = _is_number(value) and isinstance(value, int)
        elif key in _NEVER_NULL:
            right = _is_number(value)
        else:
            wanted = key in (*KEYS, *SUMMARY) or key.startswith(_SCORES)
            right = (value is None or _is_number(value)) if wanted else True
        if not right:
            raise ValueError(f"{key} is {value!r:.100}")


def _is_number(value: Any) -> bool:
    """Whether it is one that `append` would write, which numpy can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def rewind(path: Path, epoch: int) -> list[dict[str, Any]]:
    """Drop the lines after `epoch`, which a resumed run will write again; return the others."""
    records = [record for record in read(path) if record["epoch"] <= epoch]
    if path.exists():
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, records)), encoding="utf-8")
    return records


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line; it is on the disk when this returns. Non-finite numbers become null."""
    assert tuple(record)[: len(KEYS)] == KEYS
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(record)) + "\n"


class TensorBoard:
    """Writes each epoch's numbers as TensorBoard events into `folder`.

    Without tensorboardX's `SummaryWriter`, whose thread a full disk ends: then the tenth number
    waits for it for ever.

    Args:
        folder: made where it is missing.
        epoch: the last epoch to keep of what an earlier, killed run has written there.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._proto: Any = event_pb2  # what is in it, protobuf makes when it is imported
        folder.mkdir(parents=True, exist_ok=True)
        # Its name has the second; another run of the same second must not take its place.
        suffix = f".{os.getpid()}.{epoch}"
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=suffix)
        if epoch:
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            for content in ({"file_version": "brain.Event:2"}, {"session_log": start}):
                self._writer.write_event(self._proto.Event(step=epoch + 1, **content))

    def write(self, record: dict[str, Any]) -> None:
        """Add the numbers of an epoch."""
        from tensorboardX.summary import scalar

        for key, value in finite(record).items():
            if value is not None and key not in ("epoch", "step"):
                group, _, name = key.partition("_")
                tag = f"{group}/{name}" if group in ("train", "val") else f"run/{key}"
                event = self._proto.Event(step=record["epoch"], wall_time=time.time())
                event.summary.CopyFrom(scalar(tag, value))
                self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def best(records: Sequence[dict[str, Any]], score: str) -> dict[str, Any]:
    """The record with the highest `score`; of equal ones the first."""
    return max(records, key=lambda record: (record[score], -record["epoch"]))


def summarise(
    records: Sequence[dict[str, Any]], score: str, parameters: int, epochs: int
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        records: lines of `metrics.jsonl`, at least one.
        score: the key that says which epoch is the best.
        parameters: number of trained weights.
        epochs: that were asked for.
    """
    chosen, last = best(records, score), records[-1]
    frozen = [record for record in records if record["frozen_fraction"]]
    others = [key for key in last if key not in KEYS]
    return {
        "final_val_accuracy": last["val_accuracy"],
        "best_val_accuracy": chosen["val_accuracy"],
        "best_epoch": chosen["epoch"],
        # Of the last mask that there was: full training may have been resumed after it.
        "frozen_fraction": frozen[-1]["frozen_fraction"] if frozen else 0.0,
        "threshold": frozen[-1]["threshold"] if frozen else None,
        "parameters": parameters,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "epochs": last["epoch"],
        "epochs_asked": epochs,
        "steps": last["step"],
        "date": date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "hardware": hardware(),
        "versions": versions(),
    } | {key: chosen[key] for key in others}


def hardware() -> str:
    """What computes, for people: the accelerator, or the cores of which processor."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", _CPUS.read_text(encoding="utf-8"), re.MULTILINE)
        model = found[1].strip() if found else model
    return f"{cores} {'core' if cores == 1 else 'cores'} of {model}"


def versions() -> dict[str, str]:
    """Of Python, pb_jax, and what computes."""
    found = {"python": platform.python_version()}
    for package in ("pb_jax", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # used from a checkout, not installed
            found[package] = "not installed"
    return found


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, atomically."""
    write_json(path, summary)


def read_summary(path: Path, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """The content of a `summary.json`; None where there is none.

    Args:
        path: the file.
        needed: keys that have to be in it.

    Raises:
        MetricsError: it is damaged.
    """
    try:
        summary = read_json(path)
        _check_numbers(summary, needed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MetricsError(f"{path} is damaged ({error})") from error
    return summary


def table(summary: dict[str, Any]) -> str:
    """The end of a run, in a few lines.

    Example:
        >>> print(table({"epochs": 2, "final_val_accuracy": 0.9, "best_val_accuracy": 0.9125,
        ...     "best_epoch": 1, "frozen_fraction": 0.8, "threshold": 0.25, "parameters": 79214,
        ...     "seconds": 65.2}))
        epochs                   2
        final val accuracy       90.00 %
        best val accuracy        91.25 % (epoch 1)
        frozen weights           80.00 %
        threshold                0.25
        parameters               79,214
        seconds of the epochs    65.2 (without compilation)
    """
    threshold = summary["threshold"]
    rows = {
        "epochs": f"{summary['epochs']}",
        "final val accuracy": f"{summary['final_val_accuracy']:.2%}",
        "best val accuracy": f"{summary['best_val_accuracy']:.2%} (epoch {summary['best_epoch']})",
        "frozen weights": f"{summary['frozen_fraction']:.2%}",
        "threshold": "none" if threshold is None else f"{threshold:.4g}",
        "parameters": f"{summary['parameters']:,}",
        "seconds of the epochs": f"{summary['seconds']:.1f} (without compilation)",
    }
    for split, name in (("val", "validation"), ("test", "test")):
        if f"{split}_bleu4" in summary:
            scores = [f"{summary[f'{split}_bleu{n}']:.3f}" for n in (1, 2, 3, 4)]
            rows[f"{name} BLEU-1 to 4"] = "  ".join(scores)
    return "\n".join(f"{name:<24} {text}" for name, text in rows.items()).replace("%", " %")

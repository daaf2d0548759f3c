"""What a run writes down: `metrics.jsonl`, TensorBoard events, `summary.json`."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax

from pb_jax.files import finite, replacing, write_json

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

_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that was cut short by a kill does not count.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines) - 1:  # nothing, not even a line's end, comes after it
                break
            raise ValueError(f"line {number + 1} of {path} is not JSON") from None
    return records


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

    Args:
        folder: made when the first numbers come.
        epoch: the last epoch to keep of what an earlier, killed run has written there.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        from tensorboardX import SummaryWriter  # half a second, so not at the top

        self._writer = SummaryWriter(str(folder), purge_step=epoch + 1 if epoch else None)

    def write(self, record: dict[str, Any]) -> None:
        """Add the numbers of an epoch."""
        for key, value in finite(record).items():
            if value is not None and key not in ("epoch", "step"):
                group, _, name = key.partition("_")
                tag = f"{group}/{name}" if group in ("train", "val") else f"run/{key}"
                self._writer.add_scalar(tag, value, record["epoch"])
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
        seconds                  65.2
    """
    threshold = summary["threshold"]
    rows = {
        "epochs": f"{summary['epochs']}",
        "final val accuracy": f"{summary['final_val_accuracy']:.2%}",
        "best val accuracy": f"{summary['best_val_accuracy']:.2%} (epoch {summary['best_epoch']})",
        "frozen weights": f"{summary['frozen_fraction']:.2%}",
        "threshold": "none" if threshold is None else f"{threshold:.4g}",
        "parameters": f"{summary['parameters']:,}",
        "seconds": f"{summary['seconds']:.1f}",
    }
    for split, name in (("val", "validation"), ("test", "test")):
        if f"{split}_bleu4" in summary:
            scores = [f"{summary[f'{split}_bleu{n}']:.3f}" for n in (1, 2, 3, 4)]
            rows[f"{name} BLEU-1 to 4"] = "  ".join(scores)
    return "\n".join(f"{name:<24} {text}" for name, text in rows.items()).replace("%", " %")

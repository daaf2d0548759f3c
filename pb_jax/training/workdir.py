"""A run's folder: one process at a time, one configuration, finished or not."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.training import metrics, stored
from pb_jax.training.config import flatten

RESUMABLE: frozenset[str] = frozenset(
    {
        "epochs",
        "dataset.data_dir",
        "dataset.source_dir",
        "checkpoint.every_epochs",
        "checkpoint.keep",
        "mesh.data",
        "mesh.fsdp",
        "distributed",
        "processes.coordinator",
        "processes.count",
        "processes.index",
    }
)
"""Keys that may change when a run is resumed: but for rounding, an epoch computes the same."""


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training in it.

    The lock goes with the process: a killed one leaves none.

    Raises:
        UserError: the folder is in use, or cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write into {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training in {workdir} now") from None
        yield


def settle(config: Mapping[str, Any], workdir: Path) -> None:
    """Write `config.json` into a new run's folder, or check that it agrees with the one there.

    Args:
        config: a resolved configuration.
        workdir: the run's folder; it exists.

    Raises:
        UserError: the folder holds a run, of an epoch or a part of one, in which keys that are not
            in `RESUMABLE` have other values.
    """
    path = workdir / "config.json"
    begun = stored.epochs(workdir / "checkpoints" / stored.INTERRUPTED)
    if path.exists() and (begun or metrics.read(workdir / "metrics.jsonl")):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); choose another --workdir") from error
        if changed := differences(before, config):
            listed = "\n".join(f"  {line}" for line in changed)
            raise UserError(
                f"{workdir} holds a run with another configuration:\n{listed}\n"
                "Give the same configuration to resume it, or another --workdir to start anew."
            )
    write_json(path, config)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The keys that are not in `RESUMABLE` and differ, in order, each with both values.

    Args:
        there: content of a `config.json`.
        here: a resolved configuration.

    Example:
        >>> differences({"seed": 0, "epochs": 5}, {"seed": 1, "epochs": 9})
        ['seed: 0 there, 1 here']
    """
    before, now = flatten(there), flatten(json.loads(json.dumps(here)))
    return [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} here"
        for name in sorted(before.keys() | now.keys())
        if name not in RESUMABLE and before.get(name) != now.get(name)
    ]


def finished(workdir: Path, epochs: int) -> dict[str, Any] | None:
    """The summary of a run that has all its epochs behind it; None where there is more to do."""
    path = workdir / "summary.json"
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # it can be written again
        return None
    return summary if epochs in (summary.get("epochs"), summary.get("epochs_asked")) else None

"""A run's folder: one process at a time, one configuration, finished or not."""

import errno
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json
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

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training in it.

    The lock goes with the process: a killed one leaves none. A full disk, or one that fails, is an
    error of the user inside.

    Raises:
        UserError: the folder is in use, or cannot be made or written.
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
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UserError(
                f"cannot write {error.filename or workdir}: {error.strerror}\n"
                "When that is mended, the same again goes on."
            ) from error


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
            before = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); choose another --workdir") from error
        if changed := differences(before, config):
            raise UserError(
                f"{workdir} holds a run with another configuration:\n{listed(changed)}\n"
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
        f"{name if name.isprintable() else ascii(name)}: "
        f"{before.get(name)!r:.200} there, {now.get(name)!r:.200} here"
        for name in sorted(before.keys() | now.keys())
        if name not in RESUMABLE and before.get(name) != now.get(name)
    ]


def listed(differences: Sequence[str], most: int = 20) -> str:
    """Differences, a line each, for a message; not more than `most`.

    Example:
        >>> print(listed(["seed: 0 there, 1 here", "epochs: 2 there, 3 here"], 1))
          seed: 0 there, 1 here
          and 1 more
    """
    more = [f"and {len(differences) - most} more"] * (len(differences) > most)
    return "\n".join(f"  {line}" for line in [*differences[:most], *more])


def finished(workdir: Path, epochs: int) -> dict[str, Any] | None:
    """The summary of a run that has all its epochs behind it; None where there is more to do."""
    try:
        summary = metrics.read_summary(workdir / "summary.json", metrics.SUMMARY)
    except metrics.MetricsError:  # it can be written again
        return None
    if summary is None or epochs not in (summary["epochs"], summary.get("epochs_asked")):
        return None
    return summary

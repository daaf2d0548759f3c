"""A run's folder: one process at a time, one configuration, finished or not."""

import errno
import fcntl
import json
import os
import sys
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

_FILES = ("config.json", "metrics.jsonl", "summary.json")
_FOLDERS = ("checkpoints", "tensorboard", "figures")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Of others than the run's files these may be anything: a defect too.
_RIGHTS_AND_KINDS = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training in it.

    The lock goes with the process: a killed one leaves none. A full disk, or one that fails, or a
    file in the folder that may not be written, is an error of the user inside.

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
        except BlockingIOError:
            raise UserError(f"another process is training in {workdir} now") from None
        except OSError as error:  # a file system without locks
            print(
                f"WARNING: {workdir} cannot be locked ({error.strerror}): see to it that no other "
                "process trains there",
                file=sys.stderr,
                flush=True,
            )
        try:
            _check_places(workdir)
            yield
        except OSError as error:
            path = error.filename2 or error.filename  # the latter takes the place of the former
            if error.errno in _RIGHTS_AND_KINDS and _is_inside(path, workdir):
                does = "cannot read or write"
            elif error.errno in _DISK:
                does = "cannot write"
            else:
                raise
            raise UserError(
                f"{does} {path or workdir}: {error.strerror}\n"
                "When that is mended, the same again goes on."
            ) from error


def _check_places(workdir: Path) -> None:
    """Raise a `UserError` for what would only be noticed where it is written, after an epoch."""
    for name, folder in (*((n, False) for n in _FILES), *((n, True) for n in _FOLDERS)):
        path = workdir / name
        if path.exists() and path.is_dir() != folder:
            is_, wanted = ("file", "folder") if folder else ("folder", "file")
            raise UserError(
                f"{path} is a {is_}, where a {wanted} is to be; remove it, or choose another "
                "--workdir"
            )
        if folder and path.exists() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(workdir))


def _is_inside(path: Any, workdir: Path) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return Path(os.fsdecode(path)).resolve().is_relative_to(workdir.resolve())


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

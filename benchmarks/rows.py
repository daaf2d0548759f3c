"""What the benchmarks write: rows of numbers, and what these depend on."""

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json

_DEPENDS = ("device", "python", "jax")  # numbers of different ones do not make a table


class Rows:
    """The rows of a benchmark, written as JSON as they come: a run that is cut short keeps them.

    Args:
        path: where; None: nowhere.
        columns: their names.
        anew: values of the first column; rows of others that are there stay. None: none stays.

    Raises:
        UserError: other columns are there; or rows would stay, and are of another machine.
    """

    def __init__(
        self, path: Path | None, columns: Sequence[str], anew: Sequence[Any] | None = None
    ) -> None:
        self._path, self._columns = path, list(columns)
        self._rows: list[list[Any]] = []
        if path is None or not path.exists():
            return
        found = read_results(path)
        if found.get("columns") != self._columns:
            raise something_else(path)
        if anew is not None:
            check_machine(path, found)
            self._rows = [row for row in found["rows"] if row[0] not in anew]

    def add(self, *rows: Sequence[Any]) -> None:
        """Write them too."""
        self._rows += map(list, rows)
        if self._path is not None:
            content = {**machine(), "columns": self._columns, "rows": self._rows}
            write_json(self._path, content)


def read_results(path: Path) -> dict[str, Any]:
    """A JSON object; a UserError where there is something else."""
    try:
        found = read_json(path)
    except ValueError as error:
        raise something_else(path) from error
    if not isinstance(found, dict):
        raise something_else(path)
    return found


def something_else(path: Path) -> UserError:
    """What is said of a file that is not to be overwritten."""
    return UserError(f"{path} holds something else: name another file")


def check_machine(path: Path, found: Mapping[str, Any]) -> None:
    """Raise a UserError where `found`, in a file, is of another machine than this one."""
    here = machine()
    other = [f"{key} {found.get(key)}" for key in _DEPENDS if found.get(key) != here[key]]
    if other:
        raise UserError(f"{path} holds numbers of {', '.join(other)}: name another file")


def machine() -> dict[str, Any]:
    """Date, device and versions."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()

"""What the benchmarks write: rows of numbers, and what these depend on."""

import contextlib
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write the rows as JSON, under what the numbers depend on."""
    write_json(path, {**machine(), "columns": list(columns), "rows": [list(row) for row in rows]})


def read_rows(path: Path, columns: Sequence[str]) -> list[list[Any]]:
    """The rows that are there; none where nothing is.

    Raises:
        UserError: there is something else.
    """
    if not path.exists():
        return []
    try:
        found = read_json(path)
    except ValueError:
        found = {}
    if found.get("columns") != list(columns):
        raise UserError(f"{path} holds something else: name another file")
    return found["rows"]


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

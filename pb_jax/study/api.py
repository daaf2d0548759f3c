"""What `import pb_jax.study` offers."""

from pathlib import Path

from pb_jax.study.choices import Choice, parse_grid, parse_rules, parse_value
from pb_jax.study.execution import Executor, Failure
from pb_jax.study.plan import Run, base_of, configuration, make_plan, starts_of
from pb_jax.study.record import Study, read, settle
from pb_jax.study.results import Cell, Result, cells_of, read_result
from pb_jax.study.together import groups_of, run_groups, run_together

__all__ = [
    "Cell",
    "Choice",
    "Executor",
    "Failure",
    "Result",
    "Run",
    "Study",
    "base_of",
    "cells_of",
    "configuration",
    "groups_of",
    "make_plan",
    "parse_grid",
    "parse_rules",
    "parse_value",
    "read",
    "read_result",
    "run_groups",
    "run_together",
    "settle",
    "starts_of",
    "write_report",
]


def write_report(folder: Path) -> list[Path]:
    """Make `table.md`, `table.json` and the figures of a study from the files of its runs.

    Args:
        folder: of the study.

    Returns:
        The files written.

    Raises:
        UserError: no run is finished, or a file is missing or damaged.
    """
    from pb_jax.study import figures, results, tables  # matplotlib: not at import

    study = read(folder)
    found = [read_result(folder, run) for run in study.runs]
    results.check_some(found, folder)
    return [*tables.write(folder, study, found), *figures.write(folder, study, found)]

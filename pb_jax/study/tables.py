"""`table.json` and `table.md`: each run; each cell's mean ± sd, differences seed by seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pb_jax.files import replacing, write_json
from pb_jax.study.paper import title
from pb_jax.study.record import Study
from pb_jax.study.results import Cell, Result, cells_of, full_training, random_control, score_title
from pb_jax.study.statistics import Spread, spread

_OWN = ("epochs", "epochs_asked", "steps", "parameters", "device", "versions", "best_epoch")


def table(study: Study, results: Sequence[Result]) -> dict[str, Any]:
    """The content of `table.json`.

    Args:
        study: whose plan says what there was to run.
        results: of its runs.
    """
    cells = cells_of(results)
    return {
        "config": study.config,
        "base": dict(study.base),
        "runs": [_run(result) for result in results],
        "cells": [_cell(cell, cells) for cell in cells],
    }


def _run(result: Result) -> dict[str, Any]:
    run = result.run
    return {
        "folder": run.folder,
        "label": run.label,
        "rule": run.rule,
        "point": dict(run.point),
        "seed": run.seed,
        "settings": dict(run.settings),
        "share_of": run.share_of,
        "state": result.state,
        "epochs_done": len(result.records),
        "zero_gradient_fraction": result.zero_gradients,
        **result.summary,
    }


def _cell(cell: Cell, cells: Sequence[Cell]) -> dict[str, Any]:
    full, control = full_training(cell, cells), random_control(cell, cells)
    measured = sorted({key for result in cell.results.values() for key in _numbers(result.summary)})
    zeros = spread([result.zero_gradients for result in cell.results.values()])
    return {
        "label": cell.label,
        "rule": cell.rule,
        "point": dict(cell.point),
        "seeds": sorted(cell.results),
        "planned": cell.planned,
        **{key: cell.spread(key)._asdict() for key in measured},
        "zero_gradient_fraction": zeros._asdict(),
        "minus_full_training": _difference(cell, full),
        "minus_random": _difference(cell, control),
        "random_control": None if control is None else control.title,
    }


def _difference(cell: Cell, other: Cell | None) -> dict[str, Any]:
    return {**cell.less(other)._asdict(), "by_seed": cell.differences(other)}


def _numbers(summary: Mapping[str, Any]) -> list[str]:
    return [
        key for key, value in summary.items() if key not in _OWN and isinstance(value, int | float)
    ]


def markdown(study: Study, results: Sequence[Result]) -> str:
    """`table.md`: what was measured, and what was not."""
    lines = [
        f"# {title(study.base['model.name'], study.base['dataset.name'])}, "
        f"{study.base['epochs']} epochs",
        "",
        f"Config: `{study.config}`. Scores are of the test split; means over the seeds "
        "± standard deviation of one run (n - 1). Differences are in points, taken seed by seed.",
        "",
        *cell_table(results),
        *_unfinished(results),
    ]
    return "\n".join(lines) + "\n"


def cell_table(results: Sequence[Result], labels: Sequence[str] = ()) -> list[str]:
    """The lines of a Markdown table with a row for each cell, or for those of some labels."""
    cells = cells_of(results)
    shown = sorted(
        (cell for cell in cells if not labels or cell.label in labels),
        key=lambda cell: labels.index(cell.label) if labels else 0,
    )
    extra = sorted(
        {
            key
            for cell in cells
            for result in cell.results.values()
            for key in _numbers(result.summary)
            if key.startswith(("test_", "val_"))
        }
    )
    head = [
        "rule",
        "seeds",
        score_title(cells),
        "minus full training",
        "minus random, same share",
        "best epoch's accuracy (%)",
        *extra,
        "frozen (%)",
        "threshold t",
        "minutes (median epoch)",
    ]
    return aligned(head, [_row(cell, cells, extra) for cell in shown])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    r"""The lines of a Markdown table; all columns but the first are aligned at the right.

    Example:
        >>> print("\n".join(aligned(["rule", "n"], [["none", "3"]])))
        | rule | n |
        | --- | ---: |
        | none | 3 |
    """
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _row(cell: Cell, cells: Sequence[Cell], extra: Sequence[str]) -> list[str]:
    full, control = full_training(cell, cells), random_control(cell, cells)
    seeds = f"{len(cell.results)}"
    if len(cell.results) < cell.planned:
        seeds += f" of {cell.planned}"
    return [
        cell.title,
        seeds,
        plus_minus(cell.spread(), 100),
        "" if full is cell else plus_minus(cell.less(full), 100, signed=True),
        plus_minus(cell.less(control), 100, signed=True),
        plus_minus(cell.spread("best_val_accuracy"), 100),
        *(plus_minus(cell.spread(key), 1, digits=4) for key in extra),
        plus_minus(cell.spread("frozen_fraction"), 100),
        plus_minus(cell.spread("threshold"), 1, digits=3),
        plus_minus(spread([r.minutes for r in cell.results.values()]), 1, digits=1),
    ]


def plus_minus(value: Spread, unit: float, *, digits: int = 2, signed: bool = False) -> str:
    """A mean with its standard deviation as text; empty where there is none.

    Example:
        >>> plus_minus(Spread(0.9903, 0.0005, 3), 100), plus_minus(Spread(-0.001, None, 1), 100)
        ('99.03 ± 0.05', '-0.10')
        >>> plus_minus(Spread(float("nan"), None, 0), 100)
        ''
    """
    if not value.n:
        return ""
    text = f"{value.mean * unit:{'+' if signed else ''}.{digits}f}"
    return text if value.sd is None else f"{text} ± {value.sd * unit:.{digits}f}"


def _unfinished(results: Sequence[Result]) -> list[str]:
    there = [result for result in results if result.state != "finished"]
    if not there:
        return []
    return ["", "Not finished, and not in the table:", ""] + [
        f"- {result.run.title}: {result.state}"
        + (f" after {len(result.records)} epochs" if result.records else "")
        for result in there
    ]


def write(folder: Path, study: Study, results: Sequence[Result]) -> list[Path]:
    """Write both into `folder`; returns their paths."""
    write_json(folder / "table.json", table(study, results))
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(markdown(study, results), encoding="utf-8")
    return [folder / "table.md", folder / "table.json"]

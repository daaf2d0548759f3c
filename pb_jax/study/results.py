"""What the runs of a study have measured, read from their folders."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pb_jax.errors import UserError
from pb_jax.reports.run_folder import Mask, read_run
from pb_jax.reports.run_folder import Run as RunFolder
from pb_jax.study.choices import HOW_FROZEN
from pb_jax.study.plan import SHARE, Run, cell_title
from pb_jax.study.statistics import Spread, paired, spread
from pb_jax.training import metrics
from pb_jax.training.config import KEYS

SCORES = {
    "test_bleu4": "BLEU-4, test split (%)",
    "final_val_accuracy": "accuracy, last epoch (%)",
}
"""What runs are compared by, and how it is called: the first that all of them have."""
FULL = "none"
_NEEDED = ("steps", "final_val_accuracy", "frozen_fraction", "seconds")
CONTROL = "random"
PAPERS_RULE = "kde_otsu"
_SAME_SHARE = 0.01  # groups of weights come no nearer to one another


@dataclasses.dataclass(frozen=True)
class Result:
    """A run and what it has left.

    Attributes:
        run: of the plan.
        state: "finished", "unfinished" (so many epochs and no more), "missing" or "damaged".
        summary: content of `summary.json`; empty where the run is not finished.
        records: lines of `metrics.jsonl`.
    """

    run: Run
    state: str
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def zero_gradients(self) -> float:
        """Share of zero gradients in the last epoch: the paper's frozen ratio."""
        return float(self.records[-1]["zero_gradient_fraction"]) if self.records else math.nan

    @property
    def minutes(self) -> float:
        """Its epochs at the pace of the median one: pauses and other work drop out."""
        if not self.records:
            return math.nan
        pace = statistics.median(record["seconds"] for record in self.records)
        return pace * len(self.records) / 60


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one rule at one point of the grid, which differ in their seed.

    Attributes:
        label: of the rule.
        rule: its name.
        point: of the grid.
        results: of the finished runs, by seed.
        planned: how many there are to be.
    """

    label: str
    rule: str
    point: Mapping[str, Any]
    results: Mapping[int, Result]
    planned: int

    @property
    def title(self) -> str:
        """As tables and figures call it."""
        return cell_title(self.label, self.point)

    def only(self, seeds: Iterable[int]) -> "Cell":
        """The cell with the runs of those of its seeds that are among `seeds`."""
        results = {seed: self.results[seed] for seed in seeds if seed in self.results}
        return dataclasses.replace(self, results=results)

    @property
    def score(self) -> str:
        """The key of `summary.json` by which the runs are compared, one of `SCORES`."""
        summaries = [result.summary for result in self.results.values()]
        return next((key for key in SCORES if all(key in s for s in summaries)), [*SCORES][-1])

    def values(self, key: str | None = None) -> dict[int, float]:
        """A number of `summary.json`, by seed, of those runs that have it; None: the score."""
        key = self.score if key is None else key
        return {
            seed: float(result.summary[key])
            for seed, result in self.results.items()
            if result.summary.get(key) is not None
        }

    def spread(self, key: str | None = None) -> Spread:
        """Its mean over the seeds."""
        return spread(list(self.values(key).values()))

    def differences(self, other: "Cell | None", key: str | None = None) -> dict[int, float]:
        """To another cell, by seed."""
        return paired(self.values(key), {} if other is None else other.values(key))

    def less(self, other: "Cell | None", key: str | None = None) -> Spread:
        """Their mean over the seeds."""
        return spread(list(self.differences(other, key).values()))


def score_title(cells: Sequence[Cell]) -> str:
    """How the score of these cells is called."""
    return SCORES[next((cell.score for cell in cells if cell.results), [*SCORES][-1])]


def read_result(folder: Path, run: Run) -> Result:
    """Read what a run has left so far.

    Args:
        folder: of the study.
        run: of its plan.
    """
    workdir = folder / run.folder
    try:
        records = metrics.read(workdir / "metrics.jsonl")
        summary = metrics.read_summary(workdir / "summary.json", _NEEDED) or {}
    except (OSError, ValueError):
        return Result(run, "damaged", {}, [])
    if not records:
        return Result(run, "missing", {}, [])
    if not summary or summary["steps"] != records[-1]["step"]:
        return Result(run, "unfinished", {}, records)
    return Result(run, "finished", summary, records)


def cells_of(results: Iterable[Result]) -> list[Cell]:
    """The results by cell, in the order in which the cells come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.run.cell, []).append(result)
    return [
        Cell(
            label=group[0].run.label,
            rule=group[0].run.rule,
            point=group[0].run.point,
            results={r.run.seed: r for r in group if r.state == "finished"},
            planned=len(group),
        )
        for group in groups.values()
    ]


def full_training(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell of full training that `cell` is to be compared with: as it is but for the rule."""
    return _first(cells, lambda c: c.rule == FULL and c.point.items() <= cell.point.items())


def random_control(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell that freezes as many weights as `cell` at random, when and how it does.

    None where there is none, or where one of the two could not freeze what it was asked to.
    """
    if cell.rule in (FULL, CONTROL):
        return None
    own = _source(cell)

    def fits(other: Cell) -> bool:
        if other.rule != CONTROL or own is None or _source(other) != own:
            return False
        gap = other.less(cell, "frozen_fraction")
        alike = all(_setting(other, key) == _setting(cell, key) for key in HOW_FROZEN)
        return alike and gap.n > 0 and abs(gap.mean) < _SAME_SHARE

    def among_all(other: Cell) -> bool:
        return fits(other) and _setting(other, "freeze.scope") != "leaf"

    # At random among all weights, rather than among those of each leaf.
    return _first(cells, among_all) or _first(cells, fits)


def _source(cell: Cell) -> object:
    """What says how many weights are frozen: a number, or the cell that has found one."""
    runs = [result.run for result in cell.results.values()]
    if not runs:
        return None
    run = runs[0]
    if run.share_of is None and SHARE in run.settings:
        same = {key: value for key, value in run.point.items() if not key.startswith("freeze.")}
        return run.settings[SHARE], sorted(same.items())
    return (run.share_of or run.folder).rpartition("/")[0]


def _setting(cell: Cell, key: str) -> object:
    settings = next(iter(cell.results.values())).run.settings
    return settings.get(key, KEYS[key].default)


def _first(cells: Sequence[Cell], fits: Callable[[Cell], bool]) -> Cell | None:
    return next(filter(fits, cells), None)


def first_mask(folder: Path, cells: Sequence[Cell]) -> tuple[RunFolder, Mask] | None:
    """The first mask that the paper's rule has made, of the runs in the study's folder `folder`.

    Returns:
        The run and the mask; None where none is kept.

    Raises:
        UserError: a file is damaged.
    """
    for cell in cells:
        for result in cell.results.values() if cell.rule == PAPERS_RULE else ():
            workdir = folder / result.run.folder
            if any(workdir.glob("mask_step_*.npz")):
                run = read_run(workdir)
                return run, run.masks[0]
    return None


def check_some(results: Sequence[Result], folder: Path) -> None:
    """Raise a `UserError` where no run is finished."""
    if not any(result.state == "finished" for result in results):
        raise UserError(f"no run of {folder} is finished: there is nothing to make a table of")

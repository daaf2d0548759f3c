"""Tables of measurements inside of a Markdown document, made from the studies that it names.

A block is everything between `<!-- study: KIND ARGUMENTS -->` and `<!-- end -->`, each on a line of
its own. What stands outside of blocks is left alone. Folders are relative to the document.

| kind | arguments | shows |
| --- | --- | --- |
| `paper` | `[NETWORK=]DIR...` | the paper's four networks beside what was measured, the random \
control beside both |
| `table` | `DIR` | all cells of a study, with command, hardware, date |
| `rows` | `DIR LABEL...` | some of its cells |
| `difference` | `LABEL LABEL DIR...` | accuracy of one cell minus another's, seed by seed |
| `zeros` | `DIR...` | share of zero gradients in full training |
| `thresholds` | `DIR...` | what the paper's thresholds freeze of the gradients that the rule saw, \
and which freeze the paper's shares |
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pb_jax.errors import UserError
from pb_jax.files import replacing
from pb_jax.study import magnitude_shares, record
from pb_jax.study.paper import EPOCHS, PAPER, Paper, title
from pb_jax.study.record import Study
from pb_jax.study.results import (
    FULL,
    PAPERS_RULE,
    Cell,
    Result,
    cells_of,
    first_mask,
    full_training,
    random_control,
    read_result,
)
from pb_jax.study.statistics import Spread, spread
from pb_jax.study.tables import aligned, cell_table, plus_minus

_BLOCK = re.compile(
    r"^(<!-- study: (?P<kind>\S+) ?(?P<arguments>[^\n]*?) -->\n).*?^(<!-- end -->)$",
    re.MULTILINE | re.DOTALL,
)


class Measured(NamedTuple):
    """A study with what it has measured."""

    place: Path
    study: Study
    results: Sequence[Result]
    cells: Sequence[Cell]

    @property
    def network(self) -> str:
        """Its name in `models`."""
        return self.study.base["model.name"]

    @property
    def paper(self) -> Paper | None:
        """What the paper reports of this network on this data; None: nothing."""
        paper = PAPER.get(self.network)
        return paper if paper and paper.dataset == self.study.base["dataset.name"] else None

    @property
    def title(self) -> str:
        """Network, data and number of epochs."""
        base = self.study.base
        named = title(self.network, base["dataset.name"])
        return f"{named}, {base['epochs']} epochs{_shortened(self.study)}"

    def cell(self, label: str) -> Cell | None:
        """The first cell of that label."""
        return next((c for c in self.cells if c.label == label and c.results), None)


def fill(document: Path) -> list[Path]:
    """Make the blocks of a document again; returns the folders of the studies it names.

    Raises:
        UserError: a block of an unknown kind or with arguments that do not fit.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read: {error.strerror}") from error
    studies: dict[str, Measured | None] = {}

    def study_at(folder: str) -> Measured | None:
        if folder not in studies:
            studies[folder] = _measured(document.parent, folder)
        return studies[folder]

    def block(match: re.Match[str]) -> str:
        kind, arguments = match["kind"], match["arguments"].split()
        if kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise UserError(f"{document}: {kind!r} is no kind of block; there are {known}")
        return f"{match[1]}\n{chr(10).join(_KINDS[kind](arguments, study_at))}\n\n{match[4]}"

    filled = _BLOCK.sub(block, text)
    if filled != text:
        with replacing(document) as temporary:
            temporary.write_text(filled, encoding="utf-8")
    return [document.parent / folder for folder, found in studies.items() if found is not None]


StudyAt = Callable[[str], Measured | None]


def _measured(beside: Path, name: str) -> Measured | None:
    """The study in a folder; None where there is none, as its runs have not been made."""
    folder = beside / name
    if not (folder / record.FILE).exists():
        return None
    study = record.read(folder)
    results = [read_result(folder, run) for run in study.runs]
    return Measured(folder, study, results, cells_of(results))


def _paper(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    head = [
        "network, epochs",
        "rule",
        "accuracy (%)",
        "minus full training",
        "frozen (%)",
        "t",
        "seeds",
        "hardware, date",
    ]
    rows = []
    found: dict[str, list[Measured]] = {}
    for folder in arguments:
        measured = study_at(folder)
        if measured is not None and measured.paper is not None:
            found.setdefault(measured.network, []).append(measured)
    for network, paper in PAPER.items():
        rows += [
            [
                f"**{title(network, paper.dataset)}**, {EPOCHS}",
                "paper: full training",
                f"{100 * paper.full:.2f}",
                "",
                "0",
                "",
                "1",
                "the paper",
            ],
            [
                "",
                "paper: partial",
                f"{100 * paper.frozen_accuracy[0]:.2f}; mean of 3: "
                f"{100 * paper.frozen_accuracy[1]:.2f}",
                f"{100 * (paper.frozen_accuracy[0] - paper.full):+.2f}",
                f"{100 * paper.frozen[0]:.2f}; {100 * paper.frozen[1]:.2f}",
                f"{paper.threshold:g}",
                "1; 3",
                "the paper",
            ],
        ]
        for measured in found.get(network, []):
            rows += _beside(measured)
        if network not in found:
            rows.append(["", "*not run*", *[""] * (len(head) - 2)])
    return aligned(head, rows)


def _beside(measured: Measured) -> list[list[str]]:
    """The rows of a study that answer the paper's: full training, its rule, share and threshold.

    Each with its random control, where there is one.
    """
    rows, first = [], measured.title.rpartition(", ")[2]
    wanted = [measured.cell(FULL)]
    for cell in measured.cells:
        if cell.results and (cell.label == PAPERS_RULE or _is_papers(cell, measured.paper)):
            wanted += [cell, random_control(cell, measured.cells)]
    for cell in wanted:
        if cell is None or not cell.results:
            continue
        rows.append(
            [
                f"measured, {first}" if not rows else "",
                f"`{cell.label}`",
                plus_minus(cell.spread(), 100),
                "" if cell.rule == FULL else _difference_text(cell, measured),
                plus_minus(cell.spread("frozen_fraction"), 100),
                plus_minus(cell.spread("threshold"), 1, digits=3),
                f"{len(cell.results)}",
                hardware([cell]),
            ]
        )
    return rows


def _is_papers(cell: Cell, paper: Paper | None) -> bool:
    """Whether it freezes the paper's share, or by its threshold, with nothing else set."""
    settings = next(iter(cell.results.values())).run.settings
    own = {key: value for key, value in settings.items() if key.startswith("freeze.")}
    return paper is not None and own in (
        {"freeze.rule": "quantile", "freeze.frozen": paper.frozen[0]},
        {"freeze.rule": "fixed_threshold", "freeze.threshold": paper.threshold},
    )


def _difference_text(cell: Cell, measured: Measured) -> str:
    return plus_minus(cell.less(full_training(cell, measured.cells)), 100, signed=True)


def _table(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    if len(arguments) != 1:
        raise UserError(f"a block of kind 'table' needs one folder, got {' '.join(arguments)!r}")
    measured = study_at(arguments[0])
    if measured is None or not any(cell.results for cell in measured.cells):
        return [f"*{_title(arguments[0])}: not run yet.*"]
    lines = [f"{measured.title}; {hardware(measured.cells)}."]
    if measured.study.commands:
        lines += ["", "```sh", *measured.study.commands, "```"]
    return [*lines, "", *cell_table(measured.results)]


def _rows(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    if len(arguments) < 2:
        raise UserError("a block of kind 'rows' needs a folder and labels")
    folder, *labels = arguments
    measured = study_at(folder)
    if measured is None:
        return [f"*{_title(folder)}: not run yet.*"]
    if unknown := [label for label in labels if measured.cell(label) is None]:
        raise UserError(f"{folder} has no finished run of {unknown[0]!r}")
    head = f"{measured.title}; {hardware([c for c in measured.cells if c.label in labels])}."
    return [head, "", *cell_table(measured.results, labels)]


def _difference(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    if len(arguments) < 3:
        raise UserError("a block of kind 'difference' needs two labels and folders")
    one, other, *folders = arguments
    head = [
        "network",
        f"`{one}` (%)",
        f"`{other}` (%)",
        "difference (points)",
        "seeds",
        "frozen (%)",
    ]
    rows = []
    for folder in folders:
        measured = study_at(folder)
        cells = (None, None) if measured is None else (measured.cell(one), measured.cell(other))
        first, second = cells
        if measured is None or first is None or second is None:
            rows.append(
                [
                    _title(folder) if measured is None else measured.title,
                    *["*not run*"] * 2,
                    "",
                    "",
                    "",
                ]
            )
            continue
        difference = first.less(second)
        # Means over the seeds that both have, so that they differ by the difference.
        first, second = first.only(second.results), second.only(first.results)
        rows.append(
            [
                measured.title,
                plus_minus(first.spread(), 100),
                plus_minus(second.spread(), 100),
                plus_minus(difference, 100, signed=True),
                f"{difference.n}",
                " / ".join(plus_minus(c.spread("frozen_fraction"), 100) for c in (first, second)),
            ]
        )
    return aligned(head, rows)


def _zeros(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    head = ["network", "paper (%)", "measured, last epoch (%)", "seeds"]
    rows = []
    for folder in arguments:
        measured = study_at(folder)
        cell = None if measured is None else measured.cell(FULL)
        if measured is None or cell is None:
            rows.append([_title(folder), "", "*not run*", ""])
            continue
        paper = measured.paper
        given = "" if paper is None or paper.zeros is None else f"{100 * paper.zeros:.1f}"
        zeros: Spread = spread([result.zero_gradients for result in cell.results.values()])
        rows.append([measured.title, given, plus_minus(zeros, 100, digits=1), f"{zeros.n}"])
    return aligned(head, rows)


def _thresholds(arguments: Sequence[str], study_at: StudyAt) -> list[str]:
    head = [
        "network",
        "paper: t",
        "frozen (%)",
        "here: t of `kde_otsu`",
        "frozen (%)",
        "frozen by the paper's t (%)",
        "t of the paper's share",
    ]
    rows = []
    for folder in arguments:
        measured = study_at(folder)
        paper = None if measured is None else measured.paper
        seen = None if measured is None else first_mask(measured.place, measured.cells)
        if measured is None or paper is None or seen is None:
            rows.append([_title(folder), *[""] * (len(head) - 2), "*not run*"])
            continue
        run, mask = seen
        shares = magnitude_shares.of(mask)
        rows.append(
            [
                f"{measured.title}, seed {run.config['seed']}",
                f"{paper.threshold:g}",
                f"{100 * paper.frozen[0]:.2f}",
                f"{mask.threshold:.3f}",
                f"{100 * mask.frozen_fraction:.1f}",
                f"{100 * shares.at(paper.threshold):.1f}",
                f"{shares.threshold(paper.frozen[0]):.3f}",
            ]
        )
    return aligned(head, rows)


def _title(folder: str) -> str:
    """What to call a study that has not been made."""
    network = Path(folder).name
    return title(network, PAPER[network].dataset) if network in PAPER else network


def hardware(cells: Sequence[Cell]) -> str:
    """Devices and dates of the runs."""
    summaries = [result.summary for cell in cells for result in cell.results.values()]
    devices = dict.fromkeys(s.get("hardware") or s.get("device") or "?" for s in summaries)
    dates = sorted({str(s["date"]) for s in summaries if s.get("date")})
    between = dates[:1] if len(dates) < 2 else [f"{dates[0]} to {dates[-1]}"]
    return ", ".join([*devices, *between])


def _shortened(study: Study) -> str:
    limit = study.base.get("dataset.limit_train")
    return "" if limit is None else f" of {limit:,} examples"


_KINDS: dict[str, Callable[[Sequence[str], StudyAt], list[str]]] = {
    "paper": _paper,
    "table": _table,
    "rows": _rows,
    "difference": _difference,
    "zeros": _zeros,
    "thresholds": _thresholds,
}

"""Figures of a study, from the files of its runs.

| file | shows |
| --- | --- |
| `curves.png`, `curves_RULE.png` | loss, accuracy and its difference to full training over the \
epochs, mean ± sd over the seeds (the paper's figure 3); with a grid, one figure a rule |
| `accuracy_frozen.png` | accuracy against frozen share, each run and each cell |
| `layer_gradients.png`, `gradients.png` | the gradients behind the first mask of `kde_otsu`, by \
layers (the paper's figure 2) and all, with the threshold |
| `sensitivity_KEY.png` | threshold, frozen share and accuracy by the values of a grid's key |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pb_jax.errors import UserError
from pb_jax.reports import gradients, style
from pb_jax.reports.style import in_style
from pb_jax.study import paper
from pb_jax.study.record import Study
from pb_jax.study.results import (
    FULL,
    Cell,
    Result,
    cells_of,
    first_mask,
    full_training,
    score_title,
)
from pb_jax.study.statistics import spread

_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*<>h"  # 11: with 6 colours, 66 cells look different
_FULL_STYLE: dict[str, Any] = {"color": style.LINE, "linestyle": "-"}
_COLOURS = (style.DATA, style.DATA_2, style.DATA_3, "#CC79A7", "#E69F00", style.FROZEN)
_MOST_CURVES = 12


def write(folder: Path, study: Study, results: Sequence[Result]) -> list[Path]:
    """Draw the figures into `folder/figures/`; returns their paths.

    Raises:
        UserError: they cannot be written.
    """
    cells = [cell for cell in cells_of(results) if cell.results]
    title = paper.title(study.base["model.name"], study.base["dataset.name"])
    drawn: dict[str, Figure] = {}
    for name, group in _curve_groups(cells).items():
        drawn[name] = draw_curves(title, group)
    drawn["accuracy_frozen"] = draw_accuracy(title, cells)
    for key in dict.fromkeys(key for cell in cells for key in cell.point):
        by_label = _by_value(cells, key)
        if by_label:
            drawn[f"sensitivity_{key.rpartition('.')[2]}"] = draw_sensitivity(title, key, by_label)
    if seen := first_mask(folder, cells):
        drawn |= {"layer_gradients": gradients.draw_layers(*seen)}
        drawn |= {"gradients": gradients.draw_all(*seen)}
    try:
        (folder / "figures").mkdir(exist_ok=True)
        return [
            style.save(figure, folder / "figures" / f"{name}.png") for name, figure in drawn.items()
        ]
    except OSError as error:
        raise UserError(f"cannot write figures into {folder}: {error.strerror}") from error


def _curve_groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """What goes into one figure: all rules, or one rule's values beside full training."""
    if not any(cell.point for cell in cells):
        return {"curves": list(cells)}
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.rule != FULL:
            full = full_training(cell, cells)
            group = groups.setdefault(f"curves_{_name(cell.label)}", [])
            if full is not None and full not in group:
                group.append(full)
            group.append(cell)
    return groups


def _name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._=@+-" else "_" for c in label).strip("_")


@in_style
def draw_curves(title: str, cells: Sequence[Cell]) -> Figure:
    """Loss and accuracy over the epochs, and the difference to full training seed by seed.

    Of more than 12 cells those with the most seeds are drawn, and the title says so.

    Source:
        Figure 3 of the paper.
    """
    every, cells = cells, _most(cells)
    some = "" if len(cells) == len(every) else f", {len(cells)} of {len(every)} rules"
    figure = style.new_figure(8.4, f"{title}: loss and accuracy{_over_seeds(cells)}{some}")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["late", "difference"]])
    for number, cell in enumerate(cells):
        look = _look(cell, number)
        for axes, key, unit in (
            (panels["loss"], "loss", 1.0),
            (panels["accuracy"], "accuracy", 100.0),
        ):
            _band(axes, _curves(cell, f"val_{key}"), unit, label=cell.title, **look)
            _band(
                axes,
                _curves(cell, f"train_{key}"),
                unit,
                shade=False,
                **{**look, "linewidth": 0.8, "alpha": 0.5},
            )
        _band(panels["late"], _curves(cell, "val_accuracy"), 100.0, **look)
        full = full_training(cell, cells)
        if full is not None and full is not cell:
            _band(panels["difference"], _difference(cell, full), 100.0, **look)
    _label_curves(panels, cells)
    handles, labels = panels["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def _most(cells: Sequence[Cell]) -> list[Cell]:
    """As many as can be told apart: full training, then what has the most seeds, in their order."""
    by_worth = sorted(cells, key=lambda cell: (cell.rule != FULL, -len(cell.results)))
    kept = {id(cell) for cell in by_worth[:_MOST_CURVES]}
    return [cell for cell in cells if id(cell) in kept]


def _label_curves(panels: Mapping[str, Axes], cells: Sequence[Cell]) -> None:
    panels["loss"].set(title="loss; thin: training", ylabel="cross-entropy (nats)")
    panels["accuracy"].set(
        title="accuracy on the test split; thin: training", ylabel="accuracy (%)"
    )
    panels["late"].set(title="the same, enlarged", ylabel="accuracy (%)")
    panels["difference"].set(title="minus full training, same seed", ylabel="difference (points)")
    panels["difference"].axhline(0, color=style.LINE, linewidth=1)
    accuracies = [values for cell in cells for values in _curves(cell, "val_accuracy")]
    length = max(map(len, accuracies))
    late = np.concatenate([values[min(length // 5, len(values) - 1) :] for values in accuracies])
    late = 100 * late[np.isfinite(late)]
    if late.size:
        room = 0.1 * max(late.max() - late.min(), 0.1)
        panels["late"].set_ylim(late.min() - room, min(late.max() + room, 100.0))
    for axes in panels.values():
        axes.set_xlabel("epochs trained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_seeds(cells: Sequence[Cell]) -> str:
    numbers = {len(cell.results) for cell in cells}
    low, high = min(numbers), max(numbers)
    if high == 1:
        return ", one seed"
    return f", mean ± sd of {high if low == high else f'{low} to {high}'} seeds"


def _look(cell: Cell, number: int) -> dict[str, Any]:
    if cell.rule == FULL:
        return dict(_FULL_STYLE)
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)],
    }


def _curves(cell: Cell, key: str) -> list[np.ndarray]:
    return [
        np.array([np.nan if record[key] is None else record[key] for record in result.records])
        for result in cell.results.values()
    ]


def _difference(cell: Cell, full: Cell) -> list[np.ndarray]:
    both = [seed for seed in cell.results if seed in full.results]
    pairs = zip(*(_curves(c.only(both), "val_accuracy") for c in (cell, full)), strict=True)
    return [one[: len(other)] - other[: len(one)] for one, other in pairs]


def _band(
    axes: Axes, curves: Sequence[np.ndarray], unit: float, *, shade: bool = True, **look: Any
) -> None:
    """The mean of the curves, one standard deviation to both sides where there are several."""
    if not curves:
        return
    length = min(map(len, curves))
    stacked = unit * np.stack([curve[:length] for curve in curves])
    epochs = np.arange(1, length + 1)
    mean = stacked.mean(axis=0)
    axes.plot(epochs, mean, **{"linewidth": 1.4, **look})
    if shade and len(curves) > 1:
        sd = stacked.std(axis=0, ddof=1)
        axes.fill_between(
            epochs, mean - sd, mean + sd, color=look["color"], alpha=0.18, linewidth=0
        )


@in_style
def draw_accuracy(title: str, cells: Sequence[Cell]) -> Figure:
    """Accuracy after the last epoch against the frozen share: runs, and means with both sd.

    Cells of nearly the same share stand side by side.
    """
    figure = style.new_figure(5.6, f"{title}: score against frozen share{_over_seeds(cells)}")
    axes = figure.subplots()
    looks: dict[str, dict[str, Any]] = {}
    aside = _aside([100 * cell.spread("frozen_fraction").mean for cell in cells])
    for cell, moved in zip(cells, aside, strict=True):
        number = len(looks)
        new = cell.label not in looks
        look = looks.setdefault(
            cell.label,
            {
                "color": style.LINE if cell.rule == FULL else _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
            },
        )
        shares, scores = cell.values("frozen_fraction"), cell.values()
        axes.scatter(
            [100 * shares[s] + moved for s in scores],
            [100 * scores[s] for s in scores],
            s=20,
            alpha=0.5,
            linewidth=0,
            **look,
        )
        x, y = cell.spread("frozen_fraction"), cell.spread()
        axes.errorbar(
            100 * x.mean + moved,
            100 * y.mean,
            xerr=100 * (x.sd or 0),
            yerr=100 * (y.sd or 0),
            linestyle="none",
            markersize=7,
            capsize=2,
            elinewidth=1,
            label=cell.label if new else None,
            **look,
        )
    full = [cell for cell in cells if cell.rule == FULL and not cell.point]
    if full:
        axes.axhline(
            100 * full[0].spread().mean, color=style.LINE, linewidth=0.8, linestyle="--", zorder=0.5
        )
    axes.set(
        xlabel="frozen weights (%)",
        ylabel=score_title(cells),
        xlim=(-3, 103),
    )
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _aside(shares: Sequence[float]) -> list[float]:
    """How far to move each share, so that those within a point do not hide one another.

    By half a point at most, however many there are.

    Example:
        >>> _aside([0.0, 84.0, 84.2, 93.7, 93.8, 94.0])
        [0.0, -0.5, 0.5, -0.5, 0.0, 0.5]
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(shares)), key=lambda place: shares[place]):
        if groups and shares[place] - shares[groups[-1][-1]] < 1:
            groups[-1].append(place)
        else:
            groups.append([place])
    moved = [0.0] * len(shares)
    for group in groups:
        for number, place in enumerate(group if len(group) > 1 else ()):
            moved[place] = number / (len(group) - 1) - 0.5
    return moved


def _by_value(cells: Sequence[Cell], key: str) -> dict[str, list[Cell]]:
    """The cells of each rule that differ in `key`, a number, and in nothing else."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        value = cell.point.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            rest = tuple((k, v) for k, v in cell.point.items() if k != key)
            groups.setdefault((cell.label, rest), []).append(cell)
    return {
        ", ".join([label, *(f"{k.rpartition('.')[2]} {v}" for k, v in rest)]): sorted(
            group, key=lambda cell: cell.point[key]
        )
        for (label, rest), group in groups.items()
        if len(group) > 1
    }


@in_style
def draw_sensitivity(title: str, key: str, groups: Mapping[str, Sequence[Cell]]) -> Figure:
    """How threshold, frozen share and accuracy depend on a config key."""
    name = key.rpartition(".")[2]
    every = [cell for group in groups.values() for cell in group]
    figure = style.new_figure(4.4, f"{title}: sensitivity to {key}{_over_seeds(every)}")
    panels = figure.subplots(1, 3)
    columns = (
        ("threshold", 1.0, "threshold t"),
        ("frozen_fraction", 100.0, "frozen weights (%)"),
        (None, 100.0, score_title(every)),
    )
    for axes, (column, unit, label) in zip(panels, columns, strict=True):
        for number, (group, cells) in enumerate(groups.items()):
            values = [spread(list(cell.values(column).values())) for cell in cells]
            there = [i for i, value in enumerate(values) if value.n]
            axes.errorbar(
                [cells[i].point[key] for i in there],
                [unit * values[i].mean for i in there],
                yerr=[unit * (values[i].sd or 0) for i in there],
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                capsize=2,
                elinewidth=1,
                label=group,
            )
        axes.set(xlabel=name, title=label)
        positive = [cell.point[key] for cell in every]
        if min(positive) > 0 and max(positive) >= 20 * min(positive):
            axes.set_xscale("log")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure

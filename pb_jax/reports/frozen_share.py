"""Frozen share of each layer, or of each block in deep networks."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pb_jax.reports import style
from pb_jax.reports.leaves import KINDS, kinds_of, module_of, rows
from pb_jax.reports.run_folder import Mask, Run
from pb_jax.reports.style import in_style, percent

_MOST_ROWS = 72
_ROW_INCHES = 0.18
_COLOURS = dict(zip(KINDS, (style.DATA, style.DATA_2, style.DATA_3, style.QUIET), strict=True))
_MEAN: dict[str, Any] = {"color": style.LINE, "linewidth": 1, "linestyle": "--"}


@in_style
def draw(run: Run, mask: Mask) -> Figure:
    """Bars in network order, a column for kernels, one for biases, one for batch norm."""
    names = rows(mask.names, _MOST_ROWS)
    kinds = kinds_of(mask.names)
    labels = list(dict.fromkeys(names))
    columns = [kind for kind in KINDS if kind in kinds]
    shown = min(len(labels), _MOST_ROWS)  # bars get thinner where not even blocks are few
    few = len(labels) <= _MOST_ROWS
    figure = style.new_figure(
        1.6 + _ROW_INCHES * max(shown, 7),
        f"{run.title}: {percent(mask.frozen_fraction)} of {mask.sizes.sum():,} weights frozen, "
        f"mask of step {mask.step:,}",
    )
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, kind in zip(grid, columns, strict=True):
        member = [
            np.array([n == row and k == kind for n, k in zip(names, kinds, strict=True)])
            for row in labels
        ]
        sizes = np.array([mask.sizes[leaves].sum() for leaves in member])
        frozen = np.array([mask.frozen[leaves].sum() for leaves in member])
        _bars(axes, kind, frozen, sizes, few=few)
        axes.axvline(100 * mask.frozen_fraction, **_MEAN)
    every = -(-len(labels) // _MOST_ROWS)
    for axes in grid:
        axes.tick_params(axis="y", labelsize=8, length=0)
    first = grid[0]
    first.set_yticks(range(0, len(labels), every), labels[::every])
    first.set_ylim(len(labels) - 0.4, -0.6)
    deeper = len(labels) < len(set(map(module_of, mask.names)))
    first.set_ylabel("block, from the input" if deeper else "layer, from the input")
    line = Line2D([], [], **_MEAN, label="frozen share of all weights")
    number = Line2D([], [], linestyle="none", label="at the right: number of weights")
    figure.legend(handles=[line, number] if few else [line], loc="outside lower center", ncols=2)
    return figure


def _bars(axes: Axes, kind: str, frozen: np.ndarray, sizes: np.ndarray, *, few: bool) -> None:
    there = np.flatnonzero(sizes)
    shares = 100 * frozen[there] / sizes[there]
    axes.barh(there, np.full(there.size, 100.0), color="#EDEDED", height=0.8)
    axes.barh(there, shares, color=_COLOURS[kind], height=0.8)
    if few:
        for row in there:
            axes.text(
                102, float(row), f"{sizes[row]:,}", va="center", fontsize=7, color=style.QUIET
            )
    axes.set_xlim(0, 124 if few else 100)
    axes.set_xticks(range(0, 101, 25))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{kind}: {percent(frozen.sum() / sizes.sum())} of {sizes.sum():,}")
    axes.set_xlabel("frozen weights (%)")

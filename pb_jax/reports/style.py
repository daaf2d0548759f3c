"""How the figures look: one place for sizes, colours and words; no global state of matplotlib."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

from pb_jax.files import replacing

DPI = 100
WIDTH = 10.0  # inches, of every figure

# Okabe and Ito's palette, which the colour-blind tell apart.
DATA = "#0072B2"
DATA_2 = "#D55E00"
DATA_3 = "#009E73"
FROZEN = "#56B4E9"
REGION = "#F7DFA5"  # its orange, made lighter
LINE = "#000000"
QUIET = "#595959"

# Behind the data and the grid.
FROZEN_SHADE: dict[str, Any] = {"color": FROZEN, "alpha": 0.25, "linewidth": 0, "zorder": 0.3}
REGION_SHADE: dict[str, Any] = {"color": REGION, "linewidth": 0, "zorder": 0.4}
THRESHOLD_LINE: dict[str, Any] = {"color": LINE, "linewidth": 1.4, "linestyle": "--"}

_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#808080",
    "axes.facecolor": "white",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.usetex": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

_Arguments = ParamSpec("_Arguments")


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The figures' style, whatever the user's matplotlibrc says."""
    with mpl.rc_context(_RC):
        yield


def in_style(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Decorate a function that draws a figure."""

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with styled():
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, title: str) -> Figure:
    """An empty figure, `height` inches high."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically; returns its path."""
    with styled(), replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


def percent(share: float, digits: int = 1) -> str:
    """A share as text.

    Example:
        >>> percent(0.79684)
        '79.7 %'
    """
    return f"{100 * share:.{digits}f} %"


def number(value: float) -> str:
    """A quantity as text, to three or four digits.

    Example:
        >>> number(2.7965), number(1.7e-7), number(float("nan"))
        ('2.796', '1.7e-07', 'none')
    """
    return "none" if math.isnan(value) else f"{value:.4g}"

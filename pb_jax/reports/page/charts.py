"""Charts as SVG that takes its colours from the page: in the light, in the dark, on paper.

They are 360 units wide, as is a phone, with letters of 11.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from pb_jax.reports.page.markup import Markup, breakable, element

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP = 46, 8, 8
_FLOOR = HEIGHT - 38
_COLOURS = 8  # in style.css; the eye tells no more apart, so that further runs have a pattern too
_PATTERNS = ("", " dashed", " dotted")
_MOST_POINTS = 30  # of a line whose points are marked
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Line(NamedTuple):
    """A curve.

    Attributes:
        x: of its points.
        y: of its points; none is drawn where it is not finite.
        colour: number of a run.
        dashed: to be told from another of the run.
    """

    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    dashed: bool = False


class Scale(NamedTuple):
    """What an axis shows.

    Attributes:
        low: its lower end.
        high: its upper end.
        log: whether it is logarithmic.
        percent: whether it is of shares, written in percent.
        whole: whether only whole numbers are marked.
    """

    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False

    def share(self, value: float) -> float:
        """Where a value is, 0 to 1; beyond the axis: at its end."""
        low, high = self.low, self.high
        if self.log:
            if value <= 0:
                return 0.0
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values, and what is written beside them."""
        if self.log:
            decades = _decades(math.log10(self.low), math.log10(self.high))
            return [(10.0**n, f"10{str(n).translate(_SUPERSCRIPTS)}") for n in decades]
        unit = 100 if self.percent else 1
        places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        found = np.asarray(places.tick_values(unit * self.low, unit * self.high))
        room = 1e-9 * unit * (self.high - self.low)
        inside = found[(found >= unit * self.low - room) & (found <= unit * self.high + room)]
        return [(tick / unit, f"{_short(tick)}{' %' * self.percent}") for tick in inside.tolist()]


class Axes:
    """The place of a chart's content, which is added in the order in which it is painted."""

    def __init__(self, x: Scale, y: Scale) -> None:
        self._x, self._y = x, y
        self._content: list[Markup] = []

    def right(self, x: float) -> float:
        """Where a value is from the left."""
        return round(_LEFT + self._x.share(x) * (WIDTH - _LEFT - _RIGHT), 1)

    def down(self, y: float) -> float:
        """Where a value is from above."""
        return round(_FLOOR - self._y.share(y) * (_FLOOR - _TOP), 1)

    def band(self, low: float, high: float, kind: str, *, strip: bool = False) -> None:
        """Shade a range of x; as a strip along the top where it is to cover nothing."""
        left = self.right(low)
        width = round(self.right(high) - left, 1)
        height = 6 if strip else _FLOOR - _TOP
        self._content.append(
            element("rect", class_=kind, x=left, y=_TOP, width=width, height=height)
        )

    def rule(self, x: float, kind: str) -> None:
        """Draw a vertical line."""
        at = self.right(x)
        self._content.append(element("line", class_=kind, x1=at, x2=at, y1=_TOP, y2=_FLOOR))

    def line(self, line: Line) -> None:
        """Draw a curve, its points too where they are few."""
        parts, pen = [], "M"
        for x, y in zip(line.x, line.y, strict=True):
            drawn = math.isfinite(x) and math.isfinite(y)
            if drawn:
                parts.append(f"{pen}{self.right(x)} {self.down(y)}")
            pen = "L" if drawn else "M"
        kind = f"line {_look(line)}"
        self._content.append(element("path", class_=kind, d="".join(parts)))
        if line.x.size <= _MOST_POINTS:
            self.points(line)

    def points(self, line: Line) -> None:
        """Draw its points alone."""
        self._content += [
            element("circle", class_=_look(line), cx=self.right(x), cy=self.down(y), r=2)
            for x, y in zip(line.x, line.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]

    def area(self, x: np.ndarray, y: np.ndarray, kind: str) -> None:
        """Fill what is between a curve and 0."""
        if x.size:
            points = [f"{self.right(a)} {self.down(b)}" for a, b in zip(x, y, strict=True)]
            path = f"M{self.right(x[0])} {_FLOOR}L{'L'.join(points)}L{self.right(x[-1])} {_FLOOR}Z"
            self._content.append(element("path", class_=kind, d=path))

    def stairs(self, edges: np.ndarray, heights: np.ndarray, kind: str) -> None:
        """Fill a histogram; bins beyond the axis are left out."""
        inside = np.flatnonzero(self._x.low < edges[1:])
        first = int(inside[0]) if inside.size else heights.size
        self.area(np.repeat(edges[first:], 2)[1:-1], np.repeat(heights[first:], 2), kind)

    def draw(self, title: str, x_label: str) -> Markup:
        """The chart.

        Args:
            title: what it shows; read aloud, and written above it by the page.
            x_label: below the horizontal axis.
        """
        return element(
            "svg",
            *self._vertical(),
            *self._content,
            *self._horizontal(),
            element("text", x_label, x=(WIDTH + _LEFT) / 2, y=HEIGHT - 5, text_anchor="middle"),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=title,
        )

    def _vertical(self) -> Iterable[Markup]:
        for value, label in self._y.ticks():
            at = self.down(value)
            yield element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at)
            yield element("text", label, x=_LEFT - 5, y=at + 4, text_anchor="end")

    def _horizontal(self) -> Iterable[Markup]:
        yield element("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_FLOOR, y2=_FLOOR)
        for value, label in self._x.ticks():
            at = self.right(value)
            yield element("line", class_="axis", x1=at, x2=at, y1=_FLOOR, y2=_FLOOR + 4)
            yield element("text", label, x=at, y=_FLOOR + 16, text_anchor="middle")


def extent(values: Iterable[np.ndarray], margin: float = 0.04) -> tuple[float, float]:
    """Smallest and largest of all finite values, with some room; (0, 1) where there is none.

    Example:
        >>> extent([np.array([0.0, 50.0]), np.array([np.nan, 100.0])])
        (-4.0, 104.0)
    """
    finite = [part[np.isfinite(part)] for part in values]
    everything = np.concatenate(finite) if finite else np.zeros(0)
    if not everything.size:
        return 0.0, 1.0
    low, high = float(everything.min()), float(everything.max())
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def key(entries: Sequence[tuple[str, str]]) -> Markup:
    """What colours mean: (class, label) each."""
    items = [element("li", named(kind, label)) for kind, label in entries]
    return element("ul", *items, class_="key")


def named(kind: str, label: str) -> Markup:
    """A patch of colour, and beside it what it means; no line ends between them."""
    patch = element("span", class_=f"swatch {kind}")
    return element("span", patch, element("span", breakable(label)), class_="named")


def colour_of(run: int) -> str:
    """The classes that have the colour of a run, and the pattern of its lines.

    Example:
        >>> colour_of(3), colour_of(11), colour_of(19)
        ('c3', 'c3 dashed', 'c3 dotted')
    """
    return f"c{run % _COLOURS}{_PATTERNS[run // _COLOURS % len(_PATTERNS)]}"


def _look(line: Line) -> str:
    return colour_of(line.colour) + " dashed" * line.dashed


def _decades(low: float, high: float) -> range:
    first, last = math.ceil(low), math.floor(high)
    return range(first, last + 1, max(1, -(-(last - first) // 6)))


def _short(value: float) -> str:
    """A tick as text, without the dust of float arithmetic.

    Example:
        >>> _short(0.30000000000000004), _short(20000.0), _short(-0.0)
        ('0.3', '20,000', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 12) + 0.0:.6g}"

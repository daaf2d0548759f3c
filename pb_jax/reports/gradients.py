"""Gradients when a mask was made: of single layers (the paper's figure 2) and of all weights."""

import math

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredText
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from pb_jax.reports import magnitude_axis, style
from pb_jax.reports.leaves import layers, shown_layers
from pb_jax.reports.run_folder import Estimate, Mask, Run
from pb_jax.reports.style import in_style, number, percent


@in_style
def draw_layers(run: Run, mask: Mask) -> Figure:
    """Histograms of four layers' kernels, with the share of zeros and of frozen weights.

    Source:
        Figure 2 of the paper.
    """
    found = layers(mask.names)
    shown = shown_layers(len(found))
    leaves = [found[layer - 1] for layer in shown]
    rows = math.ceil(len(leaves) / 2)
    figure = style.new_figure(1.5 + 2.45 * rows, f"{run.title}: gradients of layers, {_when(mask)}")
    grid = figure.subplots(rows, min(len(leaves), 2), squeeze=False)
    panels = list(grid.flat)[: len(leaves)]
    limits = magnitude_axis.of_weights(run, mask.leaf_thresholds)
    span = magnitude_axis.visible(mask.edges, mask.counts[leaves], limits[leaves])
    for axes, layer, leaf in zip(panels, shown, leaves, strict=True):
        _histogram(axes, mask.edges, mask.counts[leaf], limits[leaf], span)
        size = max(mask.sizes[leaf], 1)
        axes.set_title(
            f"layer {layer} of {len(found)}: {mask.names[leaf]}, {mask.sizes[leaf]:,} weights\n"
            f"{percent(mask.zeros[leaf] / size)} zero gradients, "
            f"{percent(mask.frozen[leaf] / size)} frozen"
        )
    for axes in list(grid.flat)[len(leaves) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("gradients in a bin")
    for axes in panels[-2:]:
        axes.set_xlabel(magnitude_axis.title(run))
    _legend(figure, run, mask, limits[leaves])
    return figure


@in_style
def draw_all(run: Run, mask: Mask) -> Figure:
    """All gradients on a logarithmic axis; beside it, where there is one, the estimate."""
    figure = style.new_figure(5.6, f"{run.title}: all gradients, {_when(mask)}")
    estimate = mask.estimate
    if estimate is None or not np.all(np.isfinite(estimate.region)):
        axes = figure.subplots()
        _all_histogram(axes, run, mask, None)
        _legend(figure, run, mask, magnitude_axis.of_weights(run, np.array([mask.threshold])))
        return figure
    panels = figure.subplot_mosaic([["histogram", "density"], ["histogram", "subranges"]])
    _all_histogram(panels["histogram"], run, mask, estimate)
    _density(panels["density"], run, mask, estimate)
    _subranges(panels["subranges"], run, mask, estimate)
    region = Patch(**style.REGION_SHADE, label="region of highest density")
    _legend(figure, run, mask, magnitude_axis.of_weights(run, np.array([mask.threshold])), region)
    return figure


def _when(mask: Mask) -> str:
    return f"mask of step {mask.step:,} (epoch {mask.epoch})"


def _histogram(
    axes: Axes,
    edges: np.ndarray,
    counts: np.ndarray,
    threshold: float,
    span: tuple[float, float],
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*span)
    axes.stairs(counts, edges, fill=True, color=style.DATA, alpha=0.85)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(LogLocator(numticks=9))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, max(1.08 * counts.max(), 1))
    if not counts.any():
        axes.text(
            0.5,
            0.5,
            "no gradient that is finite and not 0",
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    smaller = counts[edges[1:] <= span[0]].sum()
    if smaller:
        text = f"◂ {smaller:,} smaller"
        at = {"transform": axes.transAxes, "verticalalignment": "top"}
        axes.text(0.015, 0.94, text, fontsize=8, color=style.QUIET, **at)
    if magnitude_axis.has_place(threshold):
        axes.axvspan(span[0], threshold, **style.FROZEN_SHADE)
        axes.axvline(threshold, **style.THRESHOLD_LINE)


def _all_histogram(axes: Axes, run: Run, mask: Mask, estimate: Estimate | None) -> None:
    counts = mask.counts.sum(0)
    (limit,) = limits = magnitude_axis.of_weights(run, np.array([mask.threshold]))
    span = magnitude_axis.visible(mask.edges, counts[None], limits)
    _histogram(axes, mask.edges, counts, limit, span)
    if estimate is not None and not run.groups:
        low, high = estimate.region
        # A strip along the top, since it overlaps the frozen side.
        axes.axvspan(max(low, span[0]), high, 0.97, 1, **style.REGION_SHADE)
    total = mask.sizes.sum()
    nonfinite = mask.nonfinite.sum()
    axes.set_title(
        f"{total:,} gradients: {percent(mask.zeros.sum() / total)} zero"
        f"{f', {nonfinite:,} not finite' if nonfinite else ''}, "
        f"{percent(mask.frozen_fraction)} frozen"
    )
    axes.set_xlabel(magnitude_axis.title(run))
    axes.set_ylabel("gradients in a bin")


def _density(axes: Axes, run: Run, mask: Mask, estimate: Estimate) -> None:
    low, high = estimate.region
    axes.axvspan(low, high, **style.REGION_SHADE)
    below = estimate.grid <= mask.threshold
    if below.any():
        axes.fill_between(
            estimate.grid[below], estimate.density[below], color=style.FROZEN, linewidth=0
        )
    axes.plot(estimate.grid, estimate.density, color=style.DATA)
    _linear(axes, mask, estimate)
    axes.set_ylim(bottom=0)
    axes.set_title("kernel density, with the region that is split")
    axes.set_ylabel("density")
    coverage = run.freeze.get("coverage")
    box = AnchoredText(
        f"threshold t = {number(mask.threshold)}\n"
        f"bandwidth h = {number(estimate.bandwidth)}\n"
        f"region [{number(low)}, {number(high)}]"
        + (f"\nholds {percent(coverage, 0)} of x > 0" if coverage else "")
        + f"\nlearning rate {number(mask.learning_rate)}",
        loc="upper right",
        frameon=True,
        prop={"size": 9},
    )
    box.patch.set(facecolor="white", alpha=0.85, edgecolor="none")
    axes.add_artist(box)


def _subranges(axes: Axes, run: Run, mask: Mask, estimate: Estimate) -> None:
    means, shares = estimate.subrange_means, estimate.subrange_shares
    present = np.isfinite(means) & (shares > 0)
    lower = present & (means <= mask.threshold)
    for members, marker, colour, label in (
        (lower, "o", style.DATA, "frozen"),
        (present & ~lower, "^", style.DATA_2, "goes on training"),
    ):
        axes.plot(
            means[members],
            100 * shares[members],
            marker,
            color=colour,
            markersize=3.5,
            label=f"{label}: {percent(shares[members].sum())} of the region",
        )
    axes.set_yscale("log")
    _linear(axes, mask, estimate)
    axes.set_title(f"the region's {means.size} sub-ranges, as Otsu's method sees them")
    axes.set_ylabel("share of the region (%)")
    axes.set_xlabel(f"mean of the sub-range, {magnitude_axis.title(run, run.groups)}")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(loc="upper right")


def _linear(axes: Axes, mask: Mask, estimate: Estimate) -> None:
    axes.set_xlim(estimate.grid[0], estimate.grid[-1])
    if magnitude_axis.has_place(mask.threshold):
        axes.axvline(mask.threshold, **style.THRESHOLD_LINE)


def _legend(figure: Figure, run: Run, mask: Mask, thresholds: np.ndarray, *more: Artist) -> None:
    handles: list[Artist] = [Patch(color=style.DATA, alpha=0.85, label="gradients that are not 0")]
    text = magnitude_axis.threshold(run, mask, thresholds)
    if any(map(magnitude_axis.has_place, thresholds)):
        handles += [
            Line2D([], [], **style.THRESHOLD_LINE, label=text),
            Patch(**style.FROZEN_SHADE, label="frozen: x ≤ t, and all zeros"),
        ]
    else:
        handles.append(Line2D([], [], linestyle="none", label=text))
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=4)

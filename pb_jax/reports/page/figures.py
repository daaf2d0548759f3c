"""Charts of a page: curves of all runs together, and the gradients when a mask was made."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pb_jax.reports import magnitude_axis
from pb_jax.reports.page.charts import Axes, Line, Scale, colour_of, extent, key
from pb_jax.reports.page.markup import Markup, element
from pb_jax.reports.run_folder import Estimate, Mask, Run
from pb_jax.reports.style import number, percent

_EPOCHS = "epochs trained"
_TRAINING = "training: mean over the epoch's batches"


def curves(runs: Mapping[str, Run]) -> Markup:
    """Loss, accuracy, frozen share and, of captioners, BLEU-4 over the epochs."""
    several = len(runs) > 1
    accuracy = "next word right" if any(run.captions for run in runs.values()) else "accuracy"
    panels = [("loss", "loss", "cross-entropy, nats"), ("accuracy", accuracy, "")]
    charts = []
    for name, title, unit in panels:
        note = f" ({unit})" if unit else ""
        if several:
            charts += [
                _chart(runs, [f"{split}_{name}"], f"{word} {title}{note}")
                for split, word in (("val", "validation"), ("train", "training"))
            ]
        else:
            charts.append(_chart(runs, [f"val_{name}", f"train_{name}"], f"{title}{note}"))
    if any(run.captions for run in runs.values()):
        charts.append(_chart(runs, ["val_bleu4"], "BLEU-4 of generated captions"))
    charts.append(_chart(runs, ["frozen_fraction"], "frozen share of the weights"))
    validations = list(dict.fromkeys(run.validation for run in runs.values()))
    if several:
        entries = [(colour_of(i), name) for i, name in enumerate(runs)]
        note = f"{'; '.join([*validations, _TRAINING]).capitalize()}."
    else:
        entries, note = [("c0", validations[0]), ("c0 dashed", _TRAINING)], ""
        if next(iter(runs.values())).masks:
            entries += [("frozen", "weights are frozen"), ("mask", "a mask is made")]
    return element(
        "div",
        key(entries),
        element("p", note, class_="quiet") if note else "",
        element("div", *charts, class_="charts"),
    )


def _chart(runs: Mapping[str, Run], keys: Sequence[str], title: str) -> Markup:
    lines = [
        Line(run.curves["epoch"], run.curves[key], colour=i, dashed=j > 0)
        for i, run in enumerate(runs.values())
        for j, key in enumerate(keys)
        if key in run.curves
    ]
    last = max(float(run.curves["epoch"].max()) for run in runs.values())
    share = "loss" not in keys[0] and "bleu" not in keys[0]
    limits = (0.0, 1.0) if "frozen" in keys[0] else extent(line.y for line in lines)
    axes = Axes(Scale(0.0, max(last, 1.0), whole=True), Scale(*limits, percent=share))
    if len(runs) == 1:
        _frozen(axes, next(iter(runs.values())))
    for line in lines:
        axes.line(line)
    return _figure(title, axes.draw(title, _EPOCHS))


def _frozen(axes: Axes, run: Run) -> None:
    """Shade the epochs with frozen weights; a line where an epoch's first batch made a mask."""
    if run.frozen_epochs is not None:
        axes.band(*run.frozen_epochs, "frozen")
    for mask in run.masks:
        axes.rule(mask.epoch - 1, "mask")


def threshold(run: Run, mask: Mask) -> Markup:
    """The gradients that a mask was made from, and how their threshold was found."""
    estimate = mask.estimate
    charts = [_histogram(run, mask)]
    if estimate is not None and np.all(np.isfinite(estimate.region)):
        charts += [_density(run, mask, estimate), _subranges(run, mask, estimate)]
    facts = f"Step {mask.step:,}, epoch {mask.epoch}: {percent(mask.frozen_fraction, 2)} of "
    facts += f"{mask.sizes.sum():,} weights frozen; "
    facts += f"{percent(mask.zeros.sum() / mask.sizes.sum())} of the gradients were zero; "
    facts += magnitude_axis.threshold(
        run, mask, magnitude_axis.of_weights(run, mask.leaf_thresholds)
    )
    return element("div", element("p", facts), element("div", *charts, class_="charts"))


def threshold_key() -> Markup:
    """What the colours of `threshold` mean."""
    return key(
        [
            ("histogram", "gradients that are not 0; their density"),
            ("frozen", "frozen: x ≤ t, and all zeros"),
            ("threshold", "threshold t"),
            ("region", "region of highest density, which is split"),
        ]
    )


def _histogram(run: Run, mask: Mask) -> Markup:
    counts = mask.counts.sum(0)
    (limit,) = limits = magnitude_axis.of_weights(run, np.array([mask.threshold]))
    span = magnitude_axis.visible(mask.edges, counts[None], limits)
    axes = Axes(Scale(*span, log=True), Scale(0.0, max(1.08 * float(counts.max()), 1.0)))
    axes.stairs(mask.edges, counts, "histogram")
    if magnitude_axis.has_place(limit):
        axes.band(span[0], limit, "frozen")
        axes.rule(limit, "threshold")
    if mask.estimate is not None and not run.groups and np.all(mask.estimate.region > 0):
        _region(axes, mask.estimate)
    title = "all gradients that are not 0, in a bin each"
    return _figure(title, axes.draw(title, magnitude_axis.title(run)))


def _density(run: Run, mask: Mask, estimate: Estimate) -> Markup:
    axes = Axes(_span(estimate), Scale(0.0, extent([estimate.density])[1]))
    below = estimate.grid <= mask.threshold
    axes.area(estimate.grid[below], estimate.density[below], "frozen")
    _region(axes, estimate)
    axes.line(Line(estimate.grid, estimate.density))
    if math.isfinite(mask.threshold):
        axes.rule(mask.threshold, "threshold")
    title = f"kernel density, bandwidth {number(estimate.bandwidth)}"
    return _figure(title, axes.draw(title, magnitude_axis.title(run, run.groups)))


def _subranges(run: Run, mask: Mask, estimate: Estimate) -> Markup:
    shares = np.where(estimate.subrange_shares > 0, estimate.subrange_shares, math.nan)
    low, high = extent([np.log10(shares)])
    axes = Axes(_span(estimate), Scale(10**low, 10**high, log=True))
    if math.isfinite(mask.threshold):
        axes.band(float(estimate.grid[0]), mask.threshold, "frozen")
        axes.rule(mask.threshold, "threshold")
    axes.points(Line(estimate.subrange_means, shares))
    title = f"share of each of {shares.size} sub-ranges of the region"
    return _figure(title, axes.draw(title, f"mean of {magnitude_axis.title(run, run.groups)}"))


def _region(axes: Axes, estimate: Estimate) -> None:
    low, high = estimate.region.tolist()
    axes.band(low, high, "region", strip=True)


def _span(estimate: Estimate) -> Scale:
    low, high = float(estimate.grid[0]), float(estimate.grid[-1])
    return Scale(low, high if high > low else low + 1.0)


def _figure(title: str, chart: Markup) -> Markup:
    return element("figure", element("figcaption", title, class_="title"), chart)

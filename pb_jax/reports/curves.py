"""Loss and accuracy over the epochs: the paper's figure 3."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pb_jax.reports import style
from pb_jax.reports.run_folder import Run
from pb_jax.reports.style import in_style, percent

_MARKED_EPOCHS = 30  # up to which each epoch gets a marker


@in_style
def draw(run: Run) -> Figure:
    """Panels of loss, accuracy and, of captioners, BLEU; epochs with frozen weights are shaded.

    Source:
        Figure 3 of the paper.
    """
    figure = style.new_figure(4.6, _title(run))
    loss, accuracy, *scores = panels = figure.subplots(1, 3 if run.captions else 2)
    _curves(loss, run, "loss", 1.0)
    _curves(accuracy, run, "accuracy", 100.0)
    loss.set_ylabel("cross-entropy (nats)")
    accuracy.set_ylabel("next word right (%)" if run.captions else "accuracy (%)")
    for axes in scores:
        _validation(axes, run, "bleu4", 1.0)
        axes.set_title("BLEU-4 of generated captions")
    for axes in panels:
        axes.set_xlabel("epochs trained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _events(axes, run)
    # Where the curves leave room: loss falls, accuracy rises.
    _note(loss, run, 0.97, "top")
    _note(accuracy, run, 0.03, "bottom")
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _title(run: Run) -> str:
    rule = "full training" if run.rule == "none" else run.rule_title
    shown = "loss, accuracy and BLEU" if run.captions else "loss and accuracy"
    return f"{run.title}, {rule}: {shown}"


def _curves(axes: Axes, run: Run, name: str, unit: float) -> None:
    epochs = run.curves["epoch"]
    few = epochs.size <= _MARKED_EPOCHS
    axes.plot(
        epochs,
        unit * run.curves[f"train_{name}"],
        color=style.DATA,
        marker="o" if few else None,
        markersize=4,
        label="training (mean over the epoch's batches)",
    )
    _validation(axes, run, name, unit)
    axes.margins(y=0.12)  # room for the note
    axes.set_title(name)


def _validation(axes: Axes, run: Run, name: str, unit: float) -> None:
    epochs = run.curves["epoch"]
    axes.plot(
        epochs,
        unit * run.curves[f"val_{name}"],
        color=style.DATA_2,
        linestyle="--",
        marker="s" if epochs.size <= _MARKED_EPOCHS else None,
        markersize=4,
        label=run.validation,
    )
    axes.set_xlim(0, max(epochs.max() * 1.02, 1.1))


def _events(axes: Axes, run: Run) -> None:
    """Lines where masks are made and full training resumes; both with an epoch's first batch."""
    if run.frozen_epochs is None:
        return
    begin, end = run.frozen_epochs
    first, *later = run.masks
    stop = run.freeze["stop_epoch"]
    stopped = stop is not None and stop <= run.curves["epoch"].max()
    axes.axvspan(begin, end, **style.FROZEN_SHADE, label="weights are frozen")
    axes.axvline(
        begin,
        color=style.LINE,
        linewidth=1.2,
        label=f"mask made by the first batch of epoch {first.epoch}",
    )
    for i, mask in enumerate(later):
        label = "mask made again" if len(later) == 1 else f"mask made again ({len(later)} times)"
        axes.axvline(
            mask.epoch - 1,
            color=style.LINE,
            linewidth=0.8,
            linestyle=":",
            label=None if i else label,
        )
    if stopped:
        axes.axvline(
            end,
            color=style.LINE,
            linewidth=1.2,
            linestyle="-.",
            label=f"full training again from epoch {stop} on",
        )


def _note(axes: Axes, run: Run, height: float, anchor: str) -> None:
    """The frozen share, beside the line of the first mask."""
    if not run.masks:
        return
    shares = np.array([mask.frozen_fraction for mask in run.masks])
    low, high = percent(shares.min()), percent(shares.max())
    text = f"{low} frozen" if low == high else f"{low.removesuffix(' %')} to {high} frozen"
    place = run.masks[0].epoch - 1
    left = place > 0.6 * axes.get_xlim()[1]
    axes.annotate(
        text,
        (place, height),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        horizontalalignment="right" if left else "left",
        verticalalignment=anchor,
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5},
    )

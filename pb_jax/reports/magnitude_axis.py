"""The axis of x = abs(gradient) / learning rate: what it shows, and how it is called."""

import math

import numpy as np

from pb_jax.reports.run_folder import Mask, Run
from pb_jax.reports.style import number

_BEYOND_THE_LEFT = 0.002  # share of the gradients: a long, thin tail would take half of the axis


def of_weights(run: Run, thresholds: np.ndarray) -> np.ndarray:
    """The thresholds where they are those of single gradients; NaN where of their groups' means."""
    return np.full_like(thresholds, math.nan) if run.groups else thresholds


def title(run: Run, group: str = "") -> str:
    """What x is: of single weights, or of the groups that a rule judges as a whole."""
    batches, size = run.freeze["batches"], run.freeze.get("batch_size")
    over = [f"a {group}"] if group else []
    over += [f"{batches} batches"] if batches != 1 else []
    magnitude = f"mean |gradient| of {' and '.join(over)}" if over else "|gradient|"
    if size is not None:
        magnitude += f" of {size} examples"
    return f"x = {magnitude} / learning rate"


def has_place(threshold: float) -> bool:
    """Whether a logarithmic axis has a place for it."""
    return math.isfinite(threshold) and threshold > 0


def visible(
    edges: np.ndarray, histograms: np.ndarray, thresholds: np.ndarray
) -> tuple[float, float]:
    """What a logarithmic axis has to show: all but a few of the smallest, which have no end."""
    ends = [float(t) / 2 for t in thresholds if has_place(t)]
    ends += [4 * end for end in ends]
    for counts in histograms:
        if counts.any():
            reached = np.cumsum(counts) / counts.sum()
            ends.append(float(edges[np.argmax(reached > _BEYOND_THE_LEFT)]))
            ends.append(float(edges[np.flatnonzero(counts)[-1] + 1]))
    return (min(ends), max(ends)) if ends else (1e-3, 1e1)


def threshold(run: Run, mask: Mask, thresholds: np.ndarray) -> str:
    """The threshold in words; `thresholds` are those of single gradients that are shown."""
    if any(map(has_place, thresholds)):
        of_all = has_place(mask.threshold)
        return f"threshold t = {number(mask.threshold)}" if of_all else "threshold t of the leaf"
    if run.groups and has_place(mask.threshold):
        return f"{run.rule_title}: t = {number(mask.threshold)} for means"
    return f"{run.rule_title}: no threshold of gradients"

"""`mask_step_{step}.npz`: what was seen when a mask was made, for figures and tables."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pb_jax.files import replacing
from pb_jax.training.step import HISTOGRAM_BINS, HISTOGRAM_DECADES, MaskReport


def save(
    workdir: Path,
    report: MaskReport,
    *,
    names: list[str],
    sizes: list[int],
    threshold: Any,
    alpha: float,
    step: int,
    epoch: int,
) -> Path:
    """Write the report of the mask that update `step` (from 1) made; returns the file's path.

    The format is described in `pb_jax.training`.

    Args:
        workdir: the run's folder.
        report: from `Steps.mask`.
        names: of the leaves, in the order of the report.
        sizes: their numbers of weights.
        threshold: of the mask: a scalar, or one for each leaf (in the order of a sorted dict).
        alpha: α.
        step: updates made, with the one that made the mask.
        epoch: in which it was made.
    """
    report = jax.device_get(report)
    content: dict[str, Any] = {
        "step": step,
        "epoch": epoch,
        "learning_rate": alpha,
        "frozen_fraction": report.frozen.sum() / sum(sizes),
        "leaf_names": np.array(names),
        "leaf_sizes": np.array(sizes, np.int64),
        "leaf_frozen": report.frozen.astype(np.int64),
        "leaf_zeros": report.zeros.astype(np.int64),
        "leaf_nonfinite": report.nonfinite.astype(np.int64),
        "hist_counts": report.histograms.astype(np.int64),
        "hist_edges": np.logspace(*HISTOGRAM_DECADES, HISTOGRAM_BINS + 1),
    }
    if isinstance(threshold, dict):
        content["leaf_thresholds"] = np.array([float(threshold[name]) for name in names])
    else:
        content["threshold"] = float(threshold)
    if report.estimate is not None:
        content |= report.estimate._asdict()
    path = workdir / f"mask_step_{step}.npz"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)
    return path


def step_of(path: Path) -> int:
    """The step in the name of a report.

    Example:
        >>> step_of(Path("run/mask_step_1201.npz"))
        1201
    """
    return int(path.stem.removeprefix("mask_step_"))

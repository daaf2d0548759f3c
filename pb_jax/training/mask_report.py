"""`mask_step_{step}.npz`: what was seen when a mask was made, for figures and tables."""

from collections.abc import Mapping
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
    sizes: Mapping[str, int],
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
        sizes: numbers of weights of the leaves, by name, in the order in which to list them.
        threshold: of the mask: a scalar, or a dict with one for each leaf.
        alpha: α.
        step: updates made, with the one that made the mask.
        epoch: in which it was made.
    """
    report = jax.device_get(report)
    rank = {name: i for i, name in enumerate(sorted(sizes))}
    order = [rank[name] for name in sizes]
    content: dict[str, Any] = {
        "step": step,
        "epoch": epoch,
        "learning_rate": alpha,
        "frozen_fraction": report.frozen.sum(dtype=np.int64) / sum(sizes.values()),
        "leaf_names": np.array(list(sizes)),
        "leaf_sizes": np.array(list(sizes.values()), np.int64),
        "leaf_frozen": report.frozen[order].astype(np.int64),
        "leaf_zeros": report.zeros[order].astype(np.int64),
        "leaf_nonfinite": report.nonfinite[order].astype(np.int64),
        "hist_counts": report.histograms[order].astype(np.int64),
        "hist_edges": np.logspace(*HISTOGRAM_DECADES, HISTOGRAM_BINS + 1),
    }
    if isinstance(threshold, dict):
        content["leaf_thresholds"] = np.array([float(threshold[name]) for name in sizes])
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

"""`mask_step_{step}.npz`: what was seen when a mask was made, for figures and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pb_jax
from pb_jax.files import replacing
from pb_jax.training.modules import Arrays

# Histograms of x = abs(gradient) / α: 16 bins a decade, the ends catch the rest.
HISTOGRAM_DECADES = (-8, 5)
HISTOGRAM_BINS = 16 * (HISTOGRAM_DECADES[1] - HISTOGRAM_DECADES[0])


class LeafCounts(NamedTuple):
    """Of one leaf, int32: frozen weights; zero, non-finite and other gradients, these by size."""

    frozen: jax.Array
    zeros: jax.Array
    nonfinite: jax.Array
    histogram: jax.Array


class MaskReport(NamedTuple):
    """What was seen at a mask step: the estimate of a rule that makes one, counts by leaf."""

    estimate: pb_jax.ThresholdEstimate | None
    leaves: dict[str, LeafCounts]


def look(
    estimate: pb_jax.ThresholdEstimate | None, judged: Arrays, mask: Arrays, alpha: float
) -> MaskReport:
    """Count, on the device and without waiting for it.

    Args:
        estimate: from the rule.
        judged: what the rule has judged: gradients or mean magnitudes.
        mask: what it has made of them.
        alpha: α.
    """
    unit = np.float32(alpha)
    leaves = {name: _count(judged[name], mask[name], unit) for name in judged}
    return MaskReport(estimate, leaves)


@jax.jit  # leaf by leaf: compiled once for each shape, of which a deep network has few
def _count(grads: jax.Array, mask: jax.Array, alpha: jax.Array) -> LeafCounts:
    x = jnp.abs(grads.astype(jnp.float32)).reshape(-1) / alpha
    zero, bad = x == 0, ~jnp.isfinite(x)
    low, high = HISTOGRAM_DECADES
    per_decade = HISTOGRAM_BINS // (high - low)
    position = jnp.floor((jnp.log10(jnp.where(zero | bad, 1.0, x)) - low) * per_decade)
    bins = jnp.clip(position.astype(jnp.int32), 0, HISTOGRAM_BINS - 1)
    counted = (~zero & ~bad).astype(jnp.int32)
    return LeafCounts(
        frozen=jnp.sum(~mask, dtype=jnp.int32),
        zeros=jnp.sum(zero, dtype=jnp.int32),
        nonfinite=jnp.sum(bad, dtype=jnp.int32),
        histogram=jnp.zeros([HISTOGRAM_BINS], jnp.int32).at[bins].add(counted),
    )


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
        report: from `look`.
        sizes: numbers of weights of the leaves, by name, in the order in which to list them.
        threshold: of the mask: a scalar, or a dict with one for each leaf.
        alpha: α.
        step: updates made, with the one that made the mask.
        epoch: in which it was made.
    """
    report = jax.device_get(report)
    leaves = [report.leaves[name] for name in sizes]
    frozen = np.array([leaf.frozen for leaf in leaves], np.int64)
    content: dict[str, Any] = {
        "step": step,
        "epoch": epoch,
        "learning_rate": alpha,
        "frozen_fraction": frozen.sum() / sum(sizes.values()),
        "leaf_names": np.array(list(sizes)),
        "leaf_sizes": np.array(list(sizes.values()), np.int64),
        "leaf_frozen": frozen,
        "leaf_zeros": np.array([leaf.zeros for leaf in leaves], np.int64),
        "leaf_nonfinite": np.array([leaf.nonfinite for leaf in leaves], np.int64),
        "hist_counts": np.array([leaf.histogram for leaf in leaves], np.int64),
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

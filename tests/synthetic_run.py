"""Folders as runs of train.py leave them, made from random numbers by numpy alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ALPHA = 1e-3
EDGES = np.logspace(-8, 5, 209)
SMALL = {"conv1.kernel": 200, "conv1.bias": 8, "bn1.scale": 8, "bn1.bias": 8, "fc.kernel": 900}


def deep(blocks: int) -> dict[str, int]:
    """Names and sizes of a residual network's leaves: 6 a block."""
    names = {"conv1.kernel": 432, "bn1.scale": 16, "bn1.bias": 16}
    for block in range(blocks):
        for part in (1, 2):
            at = f"layer{1 + block % 3}.{block}"
            names |= {f"{at}.conv{part}.kernel": 2304}
            names |= {f"{at}.bn{part}.scale": 16, f"{at}.bn{part}.bias": 16}
    return names | {"linear.kernel": 640, "linear.bias": 10}


def write_run(
    workdir: Path,
    *,
    epochs: int = 6,
    rule: str = "kde_otsu",
    masks: Sequence[int] = (),
    frozen: float = 0.75,
    freeze: Mapping[str, Any] | None = None,
) -> Path:
    """Write `config.json` and `metrics.jsonl`; `masks` are the epochs that begin with a new one."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = {
        "model": {"name": "toy"},
        "dataset": {"name": "noise"},
        "freeze": {"rule": rule, "stop_epoch": None, "batches": 1, **(freeze or {})},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_loss": 2.2 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "frozen_fraction": frozen if masks and epoch >= min(masks) else 0.0,
            "zero_gradient_fraction": 0.3,
            "threshold": None,
            "learning_rate": 1e-3,
            "examples_per_second": 1000.0,
            "seconds": 10.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def mask_content(
    sizes: Mapping[str, int] = SMALL,
    *,
    epoch: int = 3,
    threshold: float | None = 1.5,
    estimate: bool = False,
    per_leaf: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of a `mask_step_*.npz`: x log-normal, a fifth of it zero."""
    rng = np.random.default_rng(seed)
    leaves = [rng.lognormal(size=n) * (rng.random(n) > 0.2) for n in sizes.values()]
    thresholds = [np.nan if threshold is None else threshold] * len(leaves)
    if per_leaf:
        thresholds = [0.5 + 0.25 * i for i in range(len(leaves))]
    frozen = [np.sum(x <= t) for x, t in zip(leaves, thresholds, strict=True)]
    if threshold is None:  # at random
        frozen = [rng.binomial(n, 0.75) for n in sizes.values()]
    content: dict[str, Any] = {
        "step": 100 * (epoch - 1) + 1,
        "epoch": epoch,
        "learning_rate": ALPHA,
        "frozen_fraction": sum(frozen) / sum(sizes.values()),
        "leaf_names": np.array(list(sizes)),
        "leaf_sizes": np.array(list(sizes.values())),
        "leaf_frozen": np.array(frozen),
        "leaf_zeros": np.array([np.sum(x == 0) for x in leaves]),
        "leaf_nonfinite": np.zeros(len(leaves), int),
        "hist_counts": np.stack([np.histogram(x[x > 0], EDGES)[0] for x in leaves]),
        "hist_edges": EDGES,
    }
    if per_leaf:
        content["leaf_thresholds"] = np.array(thresholds)
    else:
        content["threshold"] = np.float32(thresholds[0])
    if estimate:
        content |= _estimate(np.concatenate(leaves))
    return content


def _estimate(x: np.ndarray, bins: int = 30) -> dict[str, Any]:
    used = x[x > 0]
    low, high = used.min(), np.quantile(used, 0.95)
    width = 0.1 * used.std()
    grid = np.linspace(low, high + (high - low) / 4, 64)
    kernels = np.exp(-0.5 * ((grid[:, None] - used) / width) ** 2)
    edges = np.linspace(low, high, bins + 1)
    members = np.histogram(used, edges)[0]
    sums = np.histogram(used, edges, weights=used)[0]
    with np.errstate(invalid="ignore"):
        means = sums / members  # NaN where there is no member
    return {
        "region": np.array([low, high]),
        "bandwidth": width,
        "grid": grid,
        "density": kernels.mean(1) / (width * np.sqrt(2 * np.pi)),
        "subrange_means": means,
        "subrange_shares": members / members.sum(),
        "num_total": x.size,
        "num_zero": np.sum(x == 0),
        "num_nonfinite": 0,
    }


def write_mask(workdir: Path, content: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """Write the report of a mask."""
    content = mask_content(**options) if content is None else content
    path = workdir / f"mask_step_{content['step']}.npz"
    np.savez(path, **content)
    return path

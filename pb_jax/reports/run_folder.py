"""What the figures are drawn from: a run's folder, read and checked."""

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pb_jax.errors import UserError
from pb_jax.files import read_json

_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "frozen_fraction")
_SCORES = ("val_bleu4",)  # of captioners
_NAMED = ("model", "dataset")
_LEAF_COUNTS = ("leaf_sizes", "leaf_frozen", "leaf_zeros", "leaf_nonfinite")
_ESTIMATE = ("region", "bandwidth", "grid", "density", "subrange_means", "subrange_shares")
UNREADABLE = (OSError, TypeError, ValueError, OverflowError)
# Their threshold is one of weights, which has no place among gradients.
_RULES_BY_WEIGHT = frozenset({"weight_magnitude"})


class Estimate(NamedTuple):
    """Of rules that estimate a density; as in `pb_jax.ThresholdEstimate`."""

    region: np.ndarray
    bandwidth: float
    grid: np.ndarray
    density: np.ndarray
    subrange_means: np.ndarray
    subrange_shares: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mask:
    """What was seen when a mask was made.

    Attributes:
        step: the update that it was made in, from 1.
        epoch: in which that was.
        learning_rate: α.
        frozen_fraction: share of all weights.
        threshold: up to which x = abs(gradient) / α is frozen. NaN: none, one a leaf, or not such.
        leaf_thresholds: (leaves,), t of each leaf; NaN where there is none.
        names: of the leaves, in network order, as are the following.
        sizes: (leaves,), numbers of weights.
        frozen: (leaves,), of them frozen.
        zeros: (leaves,), gradients that were zero.
        nonfinite: (leaves,), NaN or infinite gradients.
        counts: (leaves, bins), histograms of the other x.
        edges: (bins + 1,), of the bins.
        estimate: None for rules that make none.
    """

    step: int
    epoch: int
    learning_rate: float
    frozen_fraction: float
    threshold: float
    leaf_thresholds: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray
    frozen: np.ndarray
    zeros: np.ndarray
    nonfinite: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    estimate: Estimate | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        config: content of `config.json`; its `freeze` has defaults filled in.
        records: lines of `metrics.jsonl`, at least one.
        curves: (epochs,) each, by the key of `metrics.jsonl`, `epoch` among them; NaN for null.
        masks: in the order in which they were made.
        summary: content of `summary.json`; None: the run is not finished.
    """

    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    curves: Mapping[str, np.ndarray]
    masks: tuple[Mask, ...]
    summary: Mapping[str, Any] | None

    @property
    def model(self) -> str:
        """The network's name."""
        return self.config["model"]["name"]

    @property
    def dataset(self) -> str:
        """Its name."""
        return self.config["dataset"]["name"]

    @property
    def freeze(self) -> Mapping[str, Any]:
        """What was to be frozen."""
        return self.config["freeze"]

    @property
    def rule(self) -> str:
        """What chose the weights to freeze."""
        return self.freeze["rule"]

    @property
    def groups(self) -> str:
        """What the rule judged as a whole: "channel" or "leaf"; empty: single weights."""
        granularity = self.freeze.get("granularity", "element")
        return "" if granularity == "element" else granularity

    @property
    def rule_title(self) -> str:
        """The rule as figures call it."""
        plural = {"": "", "channel": " of channels", "leaf": " of leaves"}
        return f"rule {self.rule}{plural[self.groups]}"

    @property
    def frozen_epochs(self) -> tuple[float, float] | None:
        """When weights were frozen, in epochs trained before: from and to; None: never."""
        if not self.masks:
            return None
        stop, ended = self.freeze["stop_epoch"], float(self.curves["epoch"].max())
        end = ended if stop is None else min(stop - 1, ended)
        return self.masks[0].epoch - 1, end

    @property
    def finished(self) -> bool:
        """Whether all its epochs are behind it."""
        return self.summary is not None and self.summary.get("epochs") == self.records[-1]["epoch"]

    @property
    def captions(self) -> bool:
        """Whether it is of a captioner, which has a validation split of its own."""
        return "val_bleu4" in self.curves

    @property
    def validation(self) -> str:
        """What its `val_` is of, as figures call it."""
        return (
            "validation split" if self.captions else "validation (the test split, as in the paper)"
        )

    @property
    def title(self) -> str:
        """Network and data, as figures call the run."""
        return f"{self.model} on {self.dataset}"


def read_run(workdir: Path) -> Run:
    """Read what the figures need.

    Args:
        workdir: a run's folder.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}; give the --workdir of a run of train.py")
    config = _read_config(workdir / "config.json")
    freeze = config["freeze"]
    paths = sorted(workdir.glob("mask_step_*.npz"))
    largest = bool(freeze.get("largest"))
    masks = [read_mask(path, rule=freeze["rule"], largest=largest) for path in paths]
    records, curves = _read_records(workdir / "metrics.jsonl")
    return Run(
        config=config,
        records=records,
        curves=curves,
        masks=tuple(sorted(masks, key=lambda mask: mask.step)),
        summary=_read_summary(workdir / "summary.json"),
    )


def read_mask(path: Path, *, rule: str, largest: bool = False) -> Mask:
    """Read a `mask_step_*.npz`, in the format that `pb_jax.training` describes.

    Args:
        path: the file.
        rule: that made the mask.
        largest: whether it froze the largest gradients: then t is no upper limit, and left out.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content = arrays(path)
        names = tuple(map(str, content["leaf_names"]))
        counts = {key: content[key].astype(np.int64) for key in _LEAF_COUNTS}
        histograms, edges = content["hist_counts"], content["hist_edges"]
        threshold = float(content.get("threshold", math.nan))
        if rule in _RULES_BY_WEIGHT or largest:
            threshold, leaf_thresholds = math.nan, np.full(len(names), math.nan)
        else:
            leaf_thresholds = content.get("leaf_thresholds", np.full(len(names), threshold))
        shapes = {**{key: (len(names),) for key in counts}, "leaf_thresholds": (len(names),)}
        for key, value in {**counts, "leaf_thresholds": leaf_thresholds}.items():
            if value.shape != shapes[key]:
                raise ValueError(f"{key} has shape {value.shape}, not {shapes[key]}")
        if not names or histograms.shape != (len(names), edges.size - 1):
            raise ValueError(f"hist_counts has shape {histograms.shape} for {len(names)} leaves")
        return Mask(
            step=int(content["step"]),
            epoch=int(content["epoch"]),
            learning_rate=float(content["learning_rate"]),
            frozen_fraction=float(content["frozen_fraction"]),
            threshold=threshold,
            leaf_thresholds=leaf_thresholds.astype(float),
            names=names,
            sizes=counts["leaf_sizes"],
            frozen=counts["leaf_frozen"],
            zeros=counts["leaf_zeros"],
            nonfinite=counts["leaf_nonfinite"],
            counts=histograms.astype(np.int64),
            edges=edges.astype(float),
            estimate=_estimate(content),
        )
    except KeyError as error:
        raise damaged(path, f"it lacks {error}") from error
    except UNREADABLE as error:
        raise damaged(path, error) from error


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The content of a `.npz`.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = dict(archive)
    except Exception as error:  # numpy, zipfile and what unpacks raise many kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error
    for name, array in content.items():
        if not isinstance(array, np.ndarray):  # bytes, where it is no .npy
            raise ValueError(f"{name} is no array")
    return content


def _estimate(content: Mapping[str, np.ndarray]) -> Estimate | None:
    if "density" not in content:
        return None
    values = {key: content[key].astype(float) for key in _ESTIMATE}
    for first, second in (("grid", "density"), ("subrange_means", "subrange_shares")):
        if values[first].ndim != 1 or values[first].shape != values[second].shape:
            raise ValueError(f"{first} and {second} differ in shape")
    if values["region"].shape != (2,):
        raise ValueError(f"region has shape {values['region'].shape}, not (2,)")
    return Estimate(**{**values, "bandwidth": float(values["bandwidth"])})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
        freeze = {"stop_epoch": None, "batches": 1, **config["freeze"]}
        freeze["rule"] = str(freeze["rule"])
        named = {part: {**config[part], "name": str(config[part]["name"])} for part in _NAMED}
        return {**config, **named, "freeze": freeze}
    except FileNotFoundError as error:
        raise _missing(path) from error
    except KeyError as error:
        raise damaged(path, f"it lacks {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _read_records(path: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    from pb_jax.training import metrics

    if not path.exists():
        raise _missing(path)
    try:
        records = metrics.read(path)
        scores = [key for key in _SCORES if records and key in records[0]]
        curves = {
            key: np.array(
                [math.nan if record[key] is None else float(record[key]) for record in records]
            )
            for key in ("epoch", *_CURVES, *scores)
        }
    except UserError:
        raise
    except KeyError as error:
        raise damaged(path, f"a line lacks {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    if not records:
        raise UserError(f"{path} is empty: no epoch of the run has ended yet")
    return records, curves


def _read_summary(path: Path) -> dict[str, Any] | None:
    from pb_jax.training import metrics

    summary = metrics.read_summary(path)
    if summary is not None and not isinstance(summary.get("versions", {}), dict):
        raise damaged(path, "versions is no object")
    return summary


def _missing(path: Path) -> UserError:
    return UserError(f"there is no {path}; is {path.parent} the --workdir of a run of train.py?")


def damaged(path: Path, why: object) -> UserError:
    """The error that says so."""
    return UserError(f"{path} is damaged ({why}); no figure can be drawn from it")

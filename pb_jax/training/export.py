"""What a run's checkpoints hold, and full weights of one of them for other programs.

Nothing but the target is written, so that a run that is training is not disturbed.
"""

import contextlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pb_jax.errors import UserError
from pb_jax.files import read_json, replacing
from pb_jax.training import delta, metrics, stored
from pb_jax.training.checkpoints import rank, read_arrays

SUFFIX = ".safetensors"


class Listed(NamedTuple):
    """One checkpoint.

    Attributes:
        epoch: after which it was saved.
        score: by which the best is chosen; NaN where it is damaged.
        size: bytes on the disk, without its base.
        form: "full", "delta", or "damaged".
        base: the file of a delta's frozen weights.
    """

    epoch: int
    score: float
    size: int
    form: str
    base: Path | None = None


class Exported(NamedTuple):
    """What was written.

    Attributes:
        epoch: of the checkpoint.
        arrays: number of arrays.
        weights: number of numbers in them.
        left_out: names of what is no array of floating-point numbers.
    """

    epoch: int
    arrays: int
    weights: int
    left_out: list[str]


def listing(workdir: Path) -> list[Listed]:
    """A run's checkpoints, in order; at least one.

    Args:
        workdir: the run's folder.

    Raises:
        UserError: it holds no checkpoint.
    """
    folder = _folder(workdir)
    found = []
    for epoch in stored.epochs(folder):
        checkpoint = folder / str(epoch)
        try:
            size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        except OSError:  # the run has gone on, and removes it
            continue
        try:
            score = float(stored.item(checkpoint, stored.METRICS)["score"])
            one = Listed(epoch, score, size, "full")
            if stored.is_delta(checkpoint):
                file = stored.item(checkpoint, stored.DELTA)["base"]["file"]
                one = one._replace(form="delta", base=folder / delta.FOLDER / file)
        except (OSError, ValueError, LookupError, TypeError):
            if not checkpoint.exists():
                continue
            one = Listed(epoch, math.nan, size, "damaged")
        found.append(one)
    if not found:
        raise UserError(f"{folder} holds no checkpoint yet")
    return found


def best(checkpoints: list[Listed]) -> Listed:
    """The checkpoint with the highest score; of equal ones the first; where possible a whole one.

    >>> best([Listed(1, 0.5, 9, "full"), Listed(2, math.nan, 9, "damaged")]).epoch
    1
    """
    whole = [one for one in checkpoints if one.form != "damaged"]
    return max(whole or checkpoints, key=lambda one: rank(one._asdict()))


def export(workdir: Path, target: Path, epoch: int | str = "best", force: bool = False) -> Exported:
    """Write parameters and batch statistics of a checkpoint to a .safetensors file.

    The names are the model's ("conv1.kernel", "norm1.mean"), shapes and dtypes those of training.
    Metadata: `epoch`, `score`, `frozen_fraction`, `record` (the epoch's line of `metrics.jsonl`),
    `versions` (of what wrote the file), and `model` and `dataset` where `config.json` is there.

    Args:
        workdir: the run's folder.
        target: the file, in a folder that exists.
        epoch: whose; or "best" or "last" of those that there are.
        force: whether a file that exists may be replaced.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or the target cannot be written.
    """
    if target.suffix != SUFFIX:
        raise UserError(f"the file to write must end in {SUFFIX}, got {target}")
    if target.is_dir() or (target.exists() and not force):
        raise UserError(f"{target} exists; choose another name, or replace a file with --force")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} to write {target.name} into")
    write = delta.safetensors().save_file
    folder, found = _folder(workdir), listing(workdir)
    there = [one.epoch for one in found]
    number = {"best": best(found).epoch, "last": there[-1]}.get(str(epoch), epoch)
    if number not in there:
        listed = ", ".join(map(str, there))
        raise UserError(
            f"{folder} holds no checkpoint of epoch {epoch}; it holds those of {listed}"
        )
    number = int(number)
    try:
        stored_arrays = read_arrays(folder, number)
        record = stored.item(folder / str(number), stored.RECORD)
    except (UserError, OSError, ValueError) as error:
        if isinstance(error, UserError) and (folder / str(number)).exists():
            raise
        if (folder / str(number)).exists():
            raise UserError(f"{folder / str(number)} cannot be read: {error}") from error
        raise UserError(
            f"{folder / str(number)} was removed while it was read, as training goes on; try again"
        ) from error
    arrays = {name.partition(".")[2]: array for name, array in stored_arrays.items()}
    floats = {
        name: np.ascontiguousarray(array).reshape(array.shape)  # which makes scalars vectors
        for name, array in arrays.items()
        if jnp.issubdtype(array.dtype, jnp.floating)
    }
    score = next(one.score for one in found if one.epoch == number)
    about = {
        **_config(workdir),
        "epoch": number,
        "score": score,
        "frozen_fraction": record.get("frozen_fraction"),
        "record": record,
        "versions": metrics.versions(),
    }
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    try:
        with replacing(target) as temporary:
            write(floats, temporary, metadata=texts)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    weights = sum(array.size for array in floats.values())
    return Exported(number, len(floats), weights, sorted(arrays.keys() - floats.keys()))


def _folder(workdir: Path) -> Path:
    folder = workdir / "checkpoints"
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}; give the --workdir of a run of train.py")
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoints; give the --workdir of a run of train.py")
    return folder


def _config(workdir: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        config = read_json(workdir / "config.json")
        return {"model": config["model"]["name"], "dataset": config["dataset"]["name"]}
    return {}

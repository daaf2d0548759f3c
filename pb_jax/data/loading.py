"""The one call that brings a dataset into memory."""

import os
from pathlib import Path

from pb_jax.data import at_rest, caption_preparation, digits, preparation, shapes
from pb_jax.data.captions import CaptionDataset
from pb_jax.data.dataset import Dataset, Split
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import CaptionSpec, Spec, find, find_captions


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Load a dataset, preparing it on first use.

    Args:
        name: one of `pb_jax.data.DATASETS`.
        data_dir: the TFDS root folder; None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
        source_dir: a folder with the original files; None: prepared data, else a download.
        limit_train: take only the first examples of the training split.
        limit_eval: the same for the test split.
        progress: say on standard error what takes time.

    Returns:
        The dataset; its arrays are uint8 and int32, possibly read-only memory maps.

    Raises:
        DataError: the name or a limit is wrong, or the data are missing, damaged or unwritable.

    Example:
        >>> dataset = load("digits", limit_train=100)
        >>> dataset.train.images.shape, dataset.test.labels.shape
        ((100, 28, 28, 1), (360,))
    """
    spec = find(name)
    _check_limit("limit_train", limit_train, spec.geometry.train_size, name)
    _check_limit("limit_eval", limit_eval, spec.geometry.test_size, name)
    content = _content(spec, data_dir, source_dir, progress)
    return Dataset(
        name=spec.name,
        train=content["train"].first(limit_train),
        test=content["test"].first(limit_eval),
        num_classes=spec.geometry.num_classes,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
    )


def load_captions(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    progress: bool = True,
) -> CaptionDataset:
    """Load a dataset of pictures with captions, preparing it on first use.

    Args:
        name: one of `pb_jax.data.CAPTION_DATASETS`.
        data_dir: the TFDS root folder; None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
        source_dir: a folder with the original files; None: prepared data.
        limit_train: take only the first pictures of the training split, all captions of each.
        limit_eval: the same for the validation and the test split.
        progress: say on standard error what takes time.

    Returns:
        The dataset; pictures are decoded when they are read.

    Raises:
        DataError: the name or a limit is wrong, or the data are missing, damaged or unwritable.

    Example:
        >>> dataset = load_captions("shapes", limit_train=100)
        >>> dataset.train.images.read([0, 5]).shape, len(dataset.train.captions)
        ((2, 48, 48, 3), 100)
        >>> dataset.test.captions[0][0]
        'a large green triangle is left of a small blue ring'
    """
    spec = find_captions(name)
    content, notes = _captions(spec, data_dir, source_dir, progress)
    train, validation, test = (content[split] for split in ("train", "validation", "test"))
    _check_limit("limit_train", limit_train, len(train.captions), name)
    _check_limit("limit_eval", limit_eval, min(len(validation.captions), len(test.captions)), name)
    return CaptionDataset(
        name=name,
        train=train.first(limit_train),
        validation=validation.first(limit_eval),
        test=test.first(limit_eval),
        notes=notes,
    )


def _content(
    spec: Spec,
    data_dir: str | os.PathLike[str] | None,
    source_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> dict[str, Split]:
    if not spec.layouts:
        return digits.read()
    return preparation.splits(
        spec,
        at_rest.root_dir(data_dir),
        source_dir=None if source_dir is None else Path(source_dir).expanduser(),
        progress=Progress(progress),
    )


def _captions(
    spec: CaptionSpec,
    data_dir: str | os.PathLike[str] | None,
    source_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> caption_preparation.Prepared:
    if spec.built_in:
        return caption_preparation.Prepared(shapes.read(), ())
    return caption_preparation.load(
        spec,
        at_rest.root_dir(data_dir),
        source_dir=None if source_dir is None else Path(source_dir).expanduser(),
        progress=Progress(progress),
    )


def _check_limit(argument: str, limit: int | None, size: int, name: str) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise DataError(f"{argument} must be a whole number or None; got {limit!r}")
    if not 1 <= limit <= size:
        raise DataError(f"{argument} must be 1 to {size} for {name}; got {limit}")

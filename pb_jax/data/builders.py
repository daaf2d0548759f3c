"""The TFDS form at rest: written by a builder of our own, read back with its data source.

TFDS's own builders of these datasets unpack with TensorFlow, and Flickr8k it does not have; this
one needs none. The folder that it writes is an ordinary TFDS dataset
(`tfds.builder_from_directory` reads it), in the original order, and its metadata hold the digest of
the content.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from pb_jax.data import at_rest
from pb_jax.data.dataset import Split, content_digest
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import CaptionSpec, Spec

_BATCH = 500


class Examples(Protocol):
    """The examples of one split, in order, as TFDS's features take them."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


class _Content(NamedTuple):
    splits: Mapping[str, Examples]
    metadata: Mapping[str, Any]
    progress: Progress


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds the TFDS dataset of any spec.

    Args:
        spec: the dataset.
        content: what to write; None where a written dataset is only read.
        data_dir: the TFDS root folder.
    """

    def __init__(self, *, spec: Spec | CaptionSpec, content: _Content | None, data_dir: Path):
        self._spec = spec
        self._content = content or _Content({}, {}, Progress(enabled=False))
        self.name = spec.name  # pyright: ignore[reportAttributeAccessIssue]
        self.VERSION = tfds.core.Version(spec.version)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._spec.title}, in the original order.",
            homepage=self._spec.homepage,
            features=tfds.features.FeaturesDict(_features(self._spec)),
            supervised_keys=("image", "label") if isinstance(self._spec, Spec) else None,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._content.metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the files were found, fetched and checked before
        return {
            split: self._generate_examples(split, examples)
            for split, examples in self._content.splits.items()
        }

    def _generate_examples(self, split: str, examples: Examples) -> Iterator[tuple[int, dict]]:
        title = f"writing {self.name} {split}"
        with self._content.progress.bar(title, total=len(examples), unit="images") as bar:
            for index, example in enumerate(examples):
                yield index, example
                bar.update()


def _features(spec: Spec | CaptionSpec) -> dict[str, Any]:
    if isinstance(spec, CaptionSpec):
        return {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "name": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
    return {
        "image": tfds.features.Image(shape=spec.geometry.shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(spec.class_names)),
    }


def write(spec: Spec, splits: dict[str, Split], data_dir: Path, progress: Progress) -> None:
    """Write `splits` as a TFDS dataset below `data_dir`.

    Args:
        spec: the dataset.
        splits: its content.
        data_dir: a folder for TFDS alone; the dataset comes to lie in NAME/VERSION.
        progress: where to show it.

    Raises:
        DataError: the disk is full, or writing failed otherwise.
    """
    digests = {split: content_digest(content) for split, content in splits.items()}
    examples = {split: _Labelled(content) for split, content in splits.items()}
    write_examples(spec, examples, {"sha256": digests}, data_dir, progress)


def write_examples(
    spec: Spec | CaptionSpec,
    splits: Mapping[str, Examples],
    metadata: Mapping[str, Any],
    data_dir: Path,
    progress: Progress,
) -> None:
    """Write examples in the form of TFDS's features; like `write`, which has the arguments.

    Args:
        spec: the dataset.
        splits: its content.
        metadata: recorded along with it; JSON.
        data_dir: a folder for TFDS alone.
        progress: where to show it.

    Raises:
        DataError: the disk is full, or writing failed otherwise.
    """
    with _quiet():
        content = _Content(splits, metadata, progress)
        builder = Builder(spec=spec, content=content, data_dir=data_dir)
        try:
            builder.download_and_prepare(download_dir=data_dir / "downloads")
        except RuntimeError as error:  # how array_record reports a full disk
            raise DataError(f"{spec.name} could not be written: {error}") from error


def open_records(spec: Spec | CaptionSpec, data_dir: Path, split: str) -> Any:
    """TFDS's data source of a split, its images left encoded: `len`, `__getitems__(indices)`.

    Raises:
        Exception: of any kind, where it is damaged.
    """
    with _quiet():
        builder: Any = Builder(spec=spec, content=None, data_dir=data_dir)
        # TFDS would decode with OpenCV where it is installed and warn where it is not.
        return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def read(
    spec: Spec, data_dir: Path, digests: dict[str, str], progress: Progress
) -> dict[str, Split]:
    """Decode the TFDS dataset below `data_dir` and check its content.

    Args:
        spec: the dataset.
        data_dir: the TFDS root folder.
        digests: `content_digest` of each split when it was written.
        progress: where to show it.

    Returns:
        {"train": Split, "test": Split}.

    Raises:
        DataError: it is damaged.
    """
    try:
        splits = {split: _decode(spec, data_dir, split, progress) for split in digests}
    except Exception as error:  # TFDS, array_record and protobuf raise all kinds
        raise at_rest.damaged(spec, data_dir, str(error)) from error
    for split, content in splits.items():
        if content_digest(content) != digests[split]:
            raise at_rest.damaged(spec, data_dir, f"the content of {split} has changed")
    return splits


class _Labelled:
    """Labelled images, encoded one by one as TFDS takes them."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for image, label in zip(*self._split, strict=True):
            yield {"image": _encode(image), "label": int(label)}


def _encode(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    buffer.seek(0)
    return buffer


def _decode(spec: Spec, data_dir: Path, split: str, progress: Progress) -> Split:
    source = open_records(spec, data_dir, split)
    size = len(source)
    images = np.empty((size, *spec.geometry.shape), np.uint8)
    labels = np.empty(size, np.int32)
    with progress.bar(f"decoding {spec.name} {split}", total=size, unit="images") as bar:
        for start in range(0, size, _BATCH):
            indices = range(start, min(start + _BATCH, size))
            for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
                with Image.open(io.BytesIO(example["image"])) as image:
                    images[index] = np.asarray(image).reshape(spec.geometry.shape)
                labels[index] = example["label"]
            bar.update(len(indices))
    return Split(images, labels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from printing its own messages and bars; ours say the same in fewer words."""
    before = tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(before)

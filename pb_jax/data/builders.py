"""The TFDS form at rest: written by a builder of our own, read back with its data source.

TFDS's own builders of these datasets unpack with TensorFlow; this one needs none. The folder that
it writes is an ordinary TFDS dataset (`tfds.builder_from_directory` reads it), in the original
order, and its metadata hold the digest of the content.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from pb_jax.data.dataset import Split, content_digest
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Spec

_BATCH = 500


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a TFDS dataset of labelled images from arrays; one class serves every spec.

    Args:
        spec: the dataset.
        splits: its content; None where a written dataset is only read.
        progress: where to show it.
        data_dir: the TFDS root folder.
    """

    def __init__(
        self, *, spec: Spec, splits: dict[str, Split] | None, progress: Progress, data_dir: Path
    ):
        self._spec = spec
        self._splits = splits or {}
        self._progress = progress
        self._metadata = tfds.core.MetadataDict()
        self.name = spec.name  # pyright: ignore[reportAttributeAccessIssue]
        self.VERSION = tfds.core.Version(spec.version)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._spec.title}, in the original order.",
            homepage=self._spec.homepage,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=self._spec.geometry.shape, encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=list(self._spec.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=self._metadata,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the files were found, fetched and checked before
        digests = {split: content_digest(content) for split, content in self._splits.items()}
        self._metadata["sha256"] = digests
        return {
            split: self._generate_examples(split, content)
            for split, content in self._splits.items()
        }

    def _generate_examples(self, split: str, content: Split) -> Iterator[tuple[int, dict]]:
        title = f"writing {self.name} {split}"
        with self._progress.bar(title, total=len(content.labels), unit="images") as bar:
            for index, (image, label) in enumerate(zip(*content, strict=True)):
                yield index, {"image": _encode(image), "label": int(label)}
                bar.update()


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
    with _quiet():
        builder = ImageBuilder(spec=spec, splits=splits, progress=progress, data_dir=data_dir)
        try:
            builder.download_and_prepare(download_dir=data_dir / "downloads")
        except RuntimeError as error:  # how array_record reports a full disk
            raise DataError(f"{spec.name} could not be written: {error}") from error


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
    folder = data_dir / spec.name / spec.version
    try:
        with _quiet():
            builder = ImageBuilder(spec=spec, splits=None, progress=progress, data_dir=data_dir)
            splits = {split: _decode(builder, split, spec, progress) for split in digests}
    except Exception as error:  # TFDS, array_record and protobuf raise all kinds
        raise _damaged(spec, folder, str(error)) from error
    for split, content in splits.items():
        if content_digest(content) != digests[split]:
            raise _damaged(spec, folder, f"the content of {split} has changed")
    return splits


def _damaged(spec: Spec, folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder}: the prepared dataset is damaged ({reason}); delete this folder and run\n"
        f"  python -m pb_jax.data prepare {spec.name}"
    )


def _encode(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    buffer.seek(0)
    return buffer


def _decode(builder: Any, split: str, spec: Spec, progress: Progress) -> Split:
    # TFDS would decode with OpenCV where it is installed and warn where it is not.
    source: Any = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
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

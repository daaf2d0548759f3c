"""Pictures with captions from original files to a TFDS dataset, and back.

At rest are the encoded pictures as they were and all captions as they were written. A list of
names, digests and captions beside the TFDS dataset lets a second start begin at once; pictures are
read from the dataset when they are asked for, and checked against their digest.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pb_jax.data import at_rest, flickr8k
from pb_jax.data.captions import CaptionSplit, Example, exactly_five, normalize_caption
from pb_jax.data.errors import DataError
from pb_jax.data.pictures import check_indices, decode, in_threads, stack
from pb_jax.data.progress import Progress
from pb_jax.data.specs import CaptionSpec
from pb_jax.files import read_json, write_json

_SPLITS = ("train", "validation", "test")
_INDEX = "captions.json"
_FORMAT = 1
_BATCH = 500


class Prepared(NamedTuple):
    """What a prepared dataset holds.

    Attributes:
        splits: "train", "validation", "test".
        notes: what was irregular in the original files.
    """

    splits: dict[str, CaptionSplit]
    notes: tuple[str, ...]


def load(
    spec: CaptionSpec, root: Path, *, source_dir: Path | None = None, progress: Progress
) -> Prepared:
    """Return the content of a dataset, doing only what is needed.

    Args:
        spec: the dataset.
        root: the TFDS root folder.
        source_dir: the folder of the original files; None: it must be prepared.
        progress: where to show it.

    Raises:
        DataError: files are missing, damaged or cannot be written.
    """

    def cached() -> dict[str, tuple[Example, ...]] | None:
        if not at_rest.is_prepared(spec, root):
            return None
        digests = at_rest.metadata(spec, root, _SPLITS)["sha256"]
        return _read_index(at_rest.derived_dir(spec, root) / _INDEX, digests)

    def restore(write: bool) -> dict[str, tuple[Example, ...]]:
        return _restore(spec, root, progress, write=write)

    def prepare(work: Path) -> None:
        _prepare(spec, work, root, source_dir, progress)

    examples = at_rest.obtain(spec, root, progress, cached=cached, restore=restore, prepare=prepare)
    notes = at_rest.metadata(spec, root, _SPLITS).get("notes", [])
    return Prepared(
        {split: _split(spec, root, split, part) for split, part in examples.items()},
        tuple(map(str, notes)),
    )


class RecordImages:
    """An `ImageSource` of pictures that stay encoded in a TFDS dataset.

    Args:
        spec: the dataset.
        root: the TFDS root folder.
        split: the split.
        examples: the first or all of its examples.
    """

    def __init__(self, spec: CaptionSpec, root: Path, split: str, examples: Sequence[Example]):
        self._spec = spec
        self._root = root
        self._split = split
        self._examples = tuple(examples)
        self._records: Any = None
        self.names = tuple(example.name for example in examples)
        digests = "\n".join(example.sha256 for example in examples)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: Sequence[int] | np.ndarray, size: int | None = None) -> np.ndarray:
        """See `ImageSource.read`."""
        chosen = check_indices(indices, len(self)).tolist()
        contents = [self._content(*pair) for pair in zip(chosen, self._fetch(chosen), strict=True)]
        return stack(list(in_threads(lambda content: decode(content, size), contents)), size)

    def first(self, limit: int | None) -> "RecordImages":
        """See `ImageSource.first`."""
        return RecordImages(self._spec, self._root, self._split, self._examples[:limit])

    def _fetch(self, indices: list[int]) -> Sequence[Mapping[str, Any]]:
        from pb_jax.data import builders  # TFDS takes half a second to import

        if not indices:
            return []
        try:
            if self._records is None:
                self._records = builders.open_records(self._spec, self._root, self._split)
            return self._records.__getitems__(indices)
        except Exception as error:  # TFDS, array_record and protobuf raise all kinds
            raise at_rest.damaged(self._spec, self._root, str(error)) from error

    def _content(self, index: int, record: Mapping[str, Any]) -> bytes:
        if hashlib.sha256(record["image"]).hexdigest() != self._examples[index].sha256:
            reason = f"{self.names[index]} has changed"
            raise at_rest.damaged(self._spec, self._root, reason)
        return record["image"]


class _Encoded:
    """Examples as TFDS takes them, their pictures read from the original files."""

    def __init__(self, folder: Path, examples: Sequence[Example]):
        self._folder = folder
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for example in self._examples:
            yield {
                "image": io.BytesIO(flickr8k.load_picture(self._folder, example)),
                "name": example.name,
                "captions": list(example.captions),
            }


def _split(spec: CaptionSpec, root: Path, split: str, examples: Sequence[Example]) -> CaptionSplit:
    captions = tuple(
        exactly_five(example.name, [normalize_caption(text) for text in example.captions])
        for example in examples
    )
    return CaptionSplit(RecordImages(spec, root, split, examples), captions)


def _prepare(
    spec: CaptionSpec, work: Path, root: Path, source_dir: Path | None, progress: Progress
) -> None:
    command = f"  python -m pb_jax.data prepare {spec.name} --source DIR --data-dir {root}\n"
    if source_dir is None:
        raise DataError(
            f"{spec.name} is not prepared in {root}, and cannot be downloaded: there is no public\n"
            "copy with a published checksum. Unpack its archives into a folder DIR and run\n"
            f"{command}or train with --config.dataset.source_dir=DIR\n{flickr8k.describe()}"
        )
    progress.say(f"reading {spec.name} from {source_dir}")
    original = flickr8k.read(flickr8k.locate(source_dir), progress)
    notes = [
        *original.notes,
        *(
            f"{split} holds {len(examples):,} image{'s' * (len(examples) != 1)}, "
            f"the published one {spec.sizes[split]:,}"
            for split, examples in original.splits.items()
            if len(examples) != spec.sizes[split]
        ),
    ]
    for note in notes:
        progress.say(f"note: {note}")
    from pb_jax.data import builders

    builders.write_examples(
        spec,
        {split: _Encoded(original.images, part) for split, part in original.splits.items()},
        {"sha256": _digests(original.splits), "notes": notes},
        work,
        progress,
    )
    _restore(spec, work, progress, write=True)


def _restore(
    spec: CaptionSpec, root: Path, progress: Progress, *, write: bool
) -> dict[str, tuple[Example, ...]]:
    """Read every record, check the whole against what was recorded, and index it."""
    digests = at_rest.metadata(spec, root, _SPLITS)["sha256"]
    try:
        splits = {split: tuple(_records(spec, root, split, progress)) for split in _SPLITS}
    except Exception as error:  # TFDS, array_record and protobuf raise all kinds
        raise at_rest.damaged(spec, root, str(error)) from error
    for split, digest in _digests(splits).items():
        if digest != digests[split]:
            raise at_rest.damaged(spec, root, f"the content of {split} has changed")
    if write:
        folder = at_rest.derived_dir(spec, root)
        folder.mkdir(exist_ok=True)
        write_json(folder / _INDEX, {"format": _FORMAT, "splits": splits})
    return splits


def _records(spec: CaptionSpec, root: Path, split: str, progress: Progress) -> Iterator[Example]:
    from pb_jax.data import builders

    source = builders.open_records(spec, root, split)
    size = len(source)
    with progress.bar(f"indexing {spec.name} {split}", total=size, unit="images") as bar:
        for start in range(0, size, _BATCH):
            indices = range(start, min(start + _BATCH, size))
            for record in source.__getitems__(list(indices)):
                yield Example(
                    record["name"].decode(),
                    hashlib.sha256(record["image"]).hexdigest(),
                    tuple(caption.decode() for caption in record["captions"]),
                )
            bar.update(len(indices))


def _read_index(path: Path, digests: dict[str, str]) -> dict[str, tuple[Example, ...]] | None:
    """The examples; None if there is no index, or one that is stale or damaged."""
    try:
        index = read_json(path)
        if index["format"] != _FORMAT:
            return None
        splits = {
            split: tuple(
                Example(str(name), str(sha256), tuple(map(str, captions)))
                for name, sha256, captions in index["splits"][split]
            )
            for split in _SPLITS
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return splits if _digests(splits) == digests else None


def _digests(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """SHA-256 of names, encoded pictures and captions, of each split."""
    return {
        split: hashlib.sha256(json.dumps(examples).encode()).hexdigest()
        for split, examples in splits.items()
    }

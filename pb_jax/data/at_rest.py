"""Where prepared datasets lie, and how they come to lie there: in one step, or not at all.

Everything is made and checked in a work folder beside its destination and moved there at the end.
A kill leaves only the work folder, which the next start removes. A file lock keeps other processes
out. Beside the TFDS dataset lies a folder with what is derived from it, so that a second start
needs no TFDS; where that is missing or stale it is made again.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pb_jax.data.errors import DataError
from pb_jax.data.locking import locked
from pb_jax.data.progress import Progress
from pb_jax.data.specs import CaptionSpec, Spec
from pb_jax.files import read_json

_DERIVED = "decoded"
_WORK = ".preparing"

C = TypeVar("C")


def root_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """The TFDS root folder: `data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def dataset_dir(spec: Spec | CaptionSpec, root: Path) -> Path:
    """The folder of the TFDS dataset, whether it exists or not."""
    return root / spec.name / spec.version


def derived_dir(spec: Spec | CaptionSpec, root: Path) -> Path:
    """The folder of what is derived from the TFDS dataset, whether it exists or not."""
    return root / spec.name / _DERIVED


def is_prepared(spec: Spec | CaptionSpec, root: Path) -> bool:
    """Whether the TFDS dataset is there."""
    return (dataset_dir(spec, root) / "dataset_info.json").is_file()


def metadata(spec: Spec | CaptionSpec, root: Path, splits: Iterable[str]) -> dict[str, Any]:
    """What was recorded when the dataset was written; "sha256" holds a digest of every split.

    Raises:
        DataError: somebody else wrote it, or it is damaged.
    """
    path = dataset_dir(spec, root) / "metadata.json"
    try:
        content = read_json(path)
        digests = {split: str(content["sha256"][split]) for split in splits}
        return {**content, "sha256": digests}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.parent}: was not written by pb_jax, or is damaged; "
            "move it away or choose another data_dir"
        ) from error


def damaged(spec: Spec | CaptionSpec, root: Path, reason: str) -> DataError:
    """The error that the TFDS dataset is not what it was when it was written."""
    return DataError(
        f"{dataset_dir(spec, root)}: the prepared dataset is damaged ({reason}); "
        f"delete this folder and run\n  python -m pb_jax.data prepare {spec.name}"
    )


def obtain(
    spec: Spec | CaptionSpec,
    root: Path,
    progress: Progress,
    *,
    cached: Callable[[], C | None],
    restore: Callable[[bool], C],
    prepare: Callable[[Path], None],
) -> C:
    """Return the content of a dataset, doing only what is needed.

    Args:
        spec: the dataset.
        root: the TFDS root folder.
        progress: where to show it.
        cached: the content by way of what is derived; None where that is missing or stale.
        restore: makes it from the TFDS dataset; True: and writes what is derived.
        prepare: makes both from the original files, in a folder that it treats as `root`.

    Raises:
        DataError: of the three, or the dataset cannot be written.
    """
    if (found := cached()) is not None:
        return found
    try:
        with locked(root / spec.name, progress):
            if (found := cached()) is not None:
                return found  # another process was quicker
            if is_prepared(spec, root):
                restore(True)
            else:
                with _work_folder(root / spec.name) as work:
                    prepare(work)
                    _publish(spec, work, root)
            found = cached()
    except OSError as error:
        if is_prepared(spec, root):  # and only what is derived cannot be written
            progress.say(f"{root}: {error.strerror or error}; decoding {spec.name} into memory")
            return restore(False)
        raise DataError(
            f"{error.filename or root}: {error.strerror or error}; "
            f"cannot prepare {spec.name} below {root}. Make room or choose another data_dir"
        ) from error
    if found is None:
        raise DataError(f"{root / spec.name}: changed while it was being read; try again")
    return found


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    work = folder / _WORK
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(spec: Spec | CaptionSpec, work: Path, root: Path) -> None:
    derived = derived_dir(spec, root)
    shutil.rmtree(derived, ignore_errors=True)
    derived_dir(spec, work).rename(derived)
    dataset_dir(spec, work).rename(dataset_dir(spec, root))

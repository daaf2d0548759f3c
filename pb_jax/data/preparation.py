"""From original files to a TFDS dataset and its cache, in one step that happens or does not.

Everything is made and checked in a work folder beside its destination and moved there at the end.
A kill leaves only the work folder, which the next start removes. A file lock keeps other processes
out.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pb_jax.data import cache, download, sources
from pb_jax.data.dataset import Split
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Spec

_CACHE = "decoded"
_WORK = ".preparing"


def root_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """The TFDS root folder: `data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def dataset_dir(spec: Spec, root: Path) -> Path:
    """The folder of the TFDS dataset, whether it exists or not."""
    return root / spec.name / spec.version


def is_prepared(spec: Spec, root: Path) -> bool:
    """Whether the TFDS dataset is there."""
    return (dataset_dir(spec, root) / "dataset_info.json").is_file()


def splits(
    spec: Spec,
    root: Path,
    *,
    source_dir: Path | None = None,
    base_url: str | None = None,
    progress: Progress,
) -> dict[str, Split]:
    """Return the content of a dataset, doing only what is needed: map, decode or prepare.

    Args:
        spec: the dataset.
        root: the TFDS root folder.
        source_dir: the folder of the original files; None downloads them.
        base_url: download from here instead of the public addresses.
        progress: where to show it.

    Raises:
        DataError: files are missing, damaged, cannot be fetched or cannot be written.
    """
    if (found := _cached(spec, root)) is not None:
        return found
    try:
        with _locked(root / spec.name, progress):
            if (found := _cached(spec, root)) is not None:
                return found  # another process was quicker
            if not is_prepared(spec, root):
                _prepare(spec, root, source_dir, base_url, progress)
            else:
                _decoded(spec, root, progress)
            found = _cached(spec, root)
    except OSError as error:
        if is_prepared(spec, root):  # and only the cache cannot be written
            progress.say(f"{root}: {error.strerror or error}; decoding {spec.name} into memory")
            return _decoded(spec, root, progress, write=False)
        raise DataError(
            f"{error.filename or root}: {error.strerror or error}; "
            f"cannot prepare {spec.name} below {root}. Make room or choose another data_dir"
        ) from error
    if found is None:
        raise DataError(f"{root / spec.name}: changed while it was being read; try again")
    return found


def _cached(spec: Spec, root: Path) -> dict[str, Split] | None:
    if not is_prepared(spec, root):
        return None
    return cache.read(root / spec.name / _CACHE, _digests(spec, root), spec.geometry)


def _digests(spec: Spec, root: Path) -> dict[str, str]:
    path = dataset_dir(spec, root) / "metadata.json"
    try:
        digests = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        return {split: str(digests[split]) for split in ("train", "test")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.parent}: was not written by pb_jax, or is damaged; "
            "move it away or choose another data_dir"
        ) from error


def _decoded(spec: Spec, root: Path, progress: Progress, *, write: bool = True) -> dict[str, Split]:
    from pb_jax.data import builders  # TFDS takes half a second to import

    digests = _digests(spec, root)
    content = builders.read(spec, root, digests, progress)
    if write:
        cache.write(root / spec.name / _CACHE, content, digests)
    return content


def _prepare(
    spec: Spec, root: Path, source_dir: Path | None, base_url: str | None, progress: Progress
) -> None:
    work = root / spec.name / _WORK
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir()
        if source_dir is None:
            source_dir = _system_dir(spec) if base_url is None else None
        if source_dir is None:
            source_dir = work / "files"
            source_dir.mkdir()
            _download(spec, source_dir, root, base_url, progress)
        progress.say(f"reading {spec.name} from {source_dir}")
        content = sources.read(spec, source_dir)
        shutil.rmtree(work / "files", ignore_errors=True)
        if sources.published_name(content) is None:
            progress.say(f"note: this is not the published content of {spec.name}")
        from pb_jax.data import builders

        builders.write(spec, content, work, progress)
        _decoded(spec, work, progress)
        _publish(spec, work, root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(spec: Spec, work: Path, root: Path) -> None:
    decoded = root / spec.name / _CACHE
    shutil.rmtree(decoded, ignore_errors=True)
    (work / spec.name / _CACHE).rename(decoded)
    dataset_dir(spec, work).rename(dataset_dir(spec, root))


def _system_dir(spec: Spec) -> Path | None:
    for candidate in map(Path, spec.system_dirs):
        with contextlib.suppress(DataError):
            sources.locate(spec, candidate)
            return candidate
    return None


def _download(
    spec: Spec, folder: Path, root: Path, base_url: str | None, progress: Progress
) -> None:
    base_urls = spec.base_urls if base_url is None else (base_url,)
    try:
        download.fetch(spec.downloads, base_urls, folder, progress)
    except download.DownloadError as error:
        raise download.DownloadError(
            f"{spec.name} is not prepared in {root}, and {error}\n"
            "Without a network, put the original files into a folder DIR and run\n"
            f"  python -m pb_jax.data prepare {spec.name} --source DIR --data-dir {root}\n"
            + sources.describe(spec)
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold `folder`'s lock; the system drops it when the process ends, however it ends."""
    import fcntl  # where it is missing (Windows), built-in data still load

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another process that is preparing {folder.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems know no locks
            progress.say(f"{folder}: {error.strerror}; let only one process prepare {folder.name}")
        yield

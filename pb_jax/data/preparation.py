"""Labelled images from original files to a TFDS dataset and decoded arrays, and back."""

import contextlib
import shutil
from pathlib import Path

from pb_jax.data import at_rest, cache, download, sources
from pb_jax.data.dataset import Split
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import Spec

_SPLITS = ("train", "test")


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

    def cached() -> dict[str, Split] | None:
        if not at_rest.is_prepared(spec, root):
            return None
        return cache.read(at_rest.derived_dir(spec, root), _digests(spec, root), spec.geometry)

    def restore(write: bool) -> dict[str, Split]:
        return _decode(spec, root, progress, write=write)

    def prepare(work: Path) -> None:
        _prepare(spec, work, root, source_dir, base_url, progress)

    return at_rest.obtain(spec, root, progress, cached=cached, restore=restore, prepare=prepare)


def _digests(spec: Spec, root: Path) -> dict[str, str]:
    return at_rest.metadata(spec, root, _SPLITS)["sha256"]


def _decode(spec: Spec, root: Path, progress: Progress, *, write: bool) -> dict[str, Split]:
    from pb_jax.data import builders  # TFDS takes half a second to import

    digests = _digests(spec, root)
    content = builders.read(spec, root, digests, progress)
    if write:
        cache.write(at_rest.derived_dir(spec, root), content, digests)
    return content


def _prepare(
    spec: Spec,
    work: Path,
    root: Path,
    source_dir: Path | None,
    base_url: str | None,
    progress: Progress,
) -> None:
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
    _decode(spec, work, progress, write=True)


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

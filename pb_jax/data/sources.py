"""Finding and reading a dataset's original files in a folder."""

from pathlib import Path

from pb_jax.data.dataset import Split, content_digest
from pb_jax.data.errors import DataError
from pb_jax.data.specs import DATASETS, Layout, Spec


def read(spec: Spec, source_dir: Path) -> dict[str, Split]:
    """Read the original files of `spec` in whichever accepted layout `source_dir` holds them.

    Args:
        spec: the dataset.
        source_dir: the folder that a user named.

    Returns:
        {"train": Split, "test": Split}.

    Raises:
        DataError: files are missing, damaged, or those of another dataset.
    """
    layout, folder = locate(spec, source_dir)
    splits = layout.read(folder, spec.geometry)
    if published_name(splits) not in (spec.name, None):
        raise DataError(f"{folder}: holds {published_name(splits)}, expected {spec.name}")
    return splits


def locate(spec: Spec, source_dir: Path) -> tuple[Layout, Path]:
    """Return the layout that `source_dir` holds, and the folder of its files.

    Raises:
        DataError: nothing fits; the message lists what is missing, or what could be there.
    """
    if not source_dir.is_dir():
        raise DataError(f"{source_dir}: is no folder; name one with {spec.name}'s files")
    incomplete = ""
    for layout in spec.layouts:
        for name in layout.folders:
            folder = source_dir / name
            missing = [file for file in layout.files if not (folder / file).is_file()]
            if not missing:
                return layout, folder
            if len(missing) < len(layout.files) and not incomplete:
                incomplete = f"{folder}: lacks {', '.join(missing)}"
    raise DataError(
        (incomplete or f"{source_dir}: holds no files of {spec.name}") + "\n" + describe(spec)
    )


def describe(spec: Spec) -> str:
    """Say which files of `spec` are accepted, and where in a source folder DIR.

    Example:
        >>> print(describe(DATASETS["mnist"]))
        DIR must hold
          mnist/train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, ...
    """
    lines = []
    for layout in spec.layouts:
        folder = "" if layout.folders[0] == "." else f"{layout.folders[0]}/"
        lines.append(f"  {folder}{', '.join(layout.files)}")
    head = "DIR must hold" if len(lines) == 1 else "DIR must hold one of"
    return "\n".join([head, *lines])


def published_name(splits: dict[str, Split]) -> str | None:
    """The name of the dataset that was published with exactly this content; None: of none."""
    digests = {split: content_digest(content) for split, content in splits.items()}
    names = (spec.name for spec in DATASETS.values() if spec.digests == digests)
    return next(names, None)

"""Prepare and list datasets: `python -m pb_jax.data prepare cifar10 --source DIR`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from pb_jax import program
from pb_jax.data import at_rest, caption_preparation, preparation
from pb_jax.data.errors import DataError
from pb_jax.data.progress import Progress
from pb_jax.data.specs import CAPTION_DATASETS, DATASETS, CaptionSpec, Spec, find_any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    return _commands().run(arguments)


def _commands() -> program.Commands:
    commands = program.Commands("python -m pb_jax.data", "Prepare and list the datasets of pb_jax.")
    prepare = commands.add(
        "prepare",
        _prepare_all,
        "bring datasets into the form from which training reads",
        "Bring datasets into the form from which training reads: a TFDS dataset "
        "(array_record), and beside it decoded arrays or a list of captions. "
        "Training does the same on first use.",
        stopped="interrupted; nothing half-prepared is left",
    )
    prepare.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"one or more of: {', '.join([*DATASETS, *CAPTION_DATASETS])}",
    )
    prepare.add_argument(
        "--source",
        metavar="DIR",
        type=program.path,
        help="a folder with the original files; without it they are downloaded, where they can be",
    )
    prepare.add_argument(
        "--base-url",
        metavar="URL",
        help="download the original files from this http(s) folder, a mirror of your own; "
        "their published checksums still hold",
    )
    listing = commands.add(
        "list",
        lambda options: _list(at_rest.root_dir(options.data_dir)),
        "show the datasets, and which are prepared",
        "Show the datasets, their sizes, and where those prepared are.",
    )
    _add_data_dir(prepare)
    _add_data_dir(listing)
    return commands


def _add_data_dir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where prepared datasets live (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )


def _prepare_all(options: Namespace) -> None:
    root = at_rest.root_dir(options.data_dir)
    for spec in [find_any(name) for name in options.names]:
        _prepare(spec, root, options.source, options.base_url)


def _prepare(
    spec: Spec | CaptionSpec, root: Path, source: Path | None, base_url: str | None
) -> None:
    if built_in := _built_in(spec):
        print(f"{spec.name}: nothing to prepare, {built_in}")
        return
    before = at_rest.is_prepared(spec, root)
    sizes, notes = _sizes_and_notes(spec, root, source, base_url)
    counts = " + ".join(f"{size:,} {name}" for name, size in sizes.items())
    folder = at_rest.dataset_dir(spec, root)
    size = sum(file.stat().st_size for file in folder.parent.rglob("*") if file.is_file())
    state = "was prepared already in" if before else "prepared in"
    print(f"{spec.name}: {counts} images, {state} {folder} ({size / 2**20:.0f} MiB in all)")
    if before:  # otherwise they were shown on the way
        for note in notes:
            print(f"note: {note}")


def _sizes_and_notes(
    spec: Spec | CaptionSpec, root: Path, source: Path | None, base_url: str | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    progress = Progress(enabled=True)
    if isinstance(spec, Spec):
        content = preparation.splits(
            spec, root, source_dir=source, base_url=base_url, progress=progress
        )
        return {name: len(split.labels) for name, split in content.items()}, ()
    if base_url is not None:
        raise DataError(f"{spec.name} cannot be downloaded, so --base-url is of no use for it")
    prepared = caption_preparation.load(spec, root, source_dir=source, progress=progress)
    sizes = {name: len(split.captions) for name, split in prepared.splits.items()}
    return sizes, prepared.notes


def _built_in(spec: Spec | CaptionSpec) -> str:
    """Why there is nothing to prepare; "" where there is."""
    if isinstance(spec, CaptionSpec):
        return "it is rendered when it is loaded" if spec.built_in else ""
    return "" if spec.layouts else "it comes with scikit-learn"


def _list(root: Path) -> None:
    rows = [("NAME", "IMAGE", "TRAIN", "VALIDATION", "TEST", "HOLDS", "PREPARED")]
    for spec in [*DATASETS.values(), *CAPTION_DATASETS.values()]:
        if _built_in(spec):
            state = "built in"
        elif at_rest.is_prepared(spec, root):
            state = str(at_rest.dataset_dir(spec, root))
        else:
            state = "no"
        if isinstance(spec, CaptionSpec):
            sizes, picture, holds = spec.sizes, spec.picture, "captions"
        else:
            geometry = spec.geometry
            sizes = {split: geometry.size(split) for split in ("train", "test")}
            picture = "x".join(map(str, geometry.shape))
            holds = f"{geometry.num_classes} classes"
        train, validation, test = (
            f"{sizes[split]:,}" if split in sizes else "-"
            for split in ("train", "validation", "test")
        )
        rows.append((spec.name, picture, train, validation, test, holds, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    program.end(main())

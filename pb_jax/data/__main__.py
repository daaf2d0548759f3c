"""Prepare and list datasets: `python -m pb_jax.data prepare cifar10 --source DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.data import preparation
from pb_jax.data.progress import Progress
from pb_jax.data.specs import DATASETS, Spec, find
from pb_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    root = preparation.root_dir(options.data_dir)
    try:
        if options.command == "list":
            _list(root)
        else:
            for spec in [find(name) for name in options.names]:
                _prepare(spec, root, options.source, options.base_url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing half-prepared is left", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pb_jax.data", description="Prepare and list the datasets of pb_jax."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where prepared datasets live (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    prepare = commands.add_parser(
        "prepare",
        parents=[common],
        help="bring datasets into the form from which training reads",
        description=(
            "Bring datasets into the form from which training reads: a TFDS dataset "
            "(array_record) and decoded arrays beside it. Training does the same on first use."
        ),
    )
    prepare.add_argument(
        "names", nargs="+", metavar="NAME", help=f"one or more of: {', '.join(DATASETS)}"
    )
    prepare.add_argument(
        "--source",
        metavar="DIR",
        type=lambda text: Path(text).expanduser(),
        help="a folder with the original files; without it they are downloaded",
    )
    prepare.add_argument(
        "--base-url",
        metavar="URL",
        help="download the original files from this http(s) folder, a mirror of your own; "
        "their published checksums still hold",
    )
    commands.add_parser(
        "list",
        parents=[common],
        help="show the datasets, and which are prepared",
        description="Show the datasets, their sizes, and where those prepared are.",
    )
    return parser


def _prepare(spec: Spec, root: Path, source: Path | None, base_url: str | None) -> None:
    if not spec.layouts:
        print(f"{spec.name}: nothing to prepare, it comes with scikit-learn")
        return
    before = preparation.is_prepared(spec, root)
    content = preparation.splits(
        spec, root, source_dir=source, base_url=base_url, progress=Progress(enabled=True)
    )
    counts = " + ".join(f"{len(split.labels):,} {name}" for name, split in content.items())
    folder = preparation.dataset_dir(spec, root)
    size = sum(file.stat().st_size for file in folder.parent.rglob("*") if file.is_file())
    state = "was prepared already in" if before else "prepared in"
    print(f"{spec.name}: {counts} images, {state} {folder} ({size / 2**20:.0f} MiB in all)")


def _list(root: Path) -> None:
    rows = [("NAME", "IMAGE", "TRAIN", "TEST", "CLASSES", "PREPARED")]
    for spec in DATASETS.values():
        if not spec.layouts:
            state = "built in"
        elif preparation.is_prepared(spec, root):
            state = str(preparation.dataset_dir(spec, root))
        else:
            state = "no"
        geometry = spec.geometry
        rows.append(
            (
                spec.name,
                "x".join(map(str, geometry.shape)),
                f"{geometry.train_size:,}",
                f"{geometry.test_size:,}",
                str(geometry.num_classes),
                state,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())

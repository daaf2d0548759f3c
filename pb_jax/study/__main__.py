"""What is made of existing studies: `python -m pb_jax.study tables|export|report ...`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.study import write_report
from pb_jax.study.export import export
from pb_jax.study.report import fill


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "tables":
            return _tables(options.folders)
        if options.command == "export":
            return _export(options.folder, options.target)
        return _report(options.documents)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _tables(folders: Iterable[Path]) -> int:
    status = 0
    for folder in folders:
        try:
            for path in write_report(folder):
                print(path)
        except UserError as error:  # the other folders may be in order
            print(f"error: {error}", file=sys.stderr)
            status = 2
    return status


def _export(folder: Path, target: Path) -> int:
    try:
        written = export(folder, target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(written)} files in {target}")
    return _tables([target])


def _report(documents: Iterable[Path]) -> int:
    status = 0
    for document in documents:
        try:
            folders = fill(document)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        print(document)
        status = max(status, _tables(folders))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pb_jax.study", description="Tables and figures of what study.py has run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tables = commands.add_parser(
        "tables",
        help="make the tables and figures of studies again",
        description=(
            "Make DIR/table.md, DIR/table.json and DIR/figures/ from the files of the runs, "
            "and print their paths. Runs that are not finished are listed below the table."
        ),
    )
    tables.add_argument(
        "folders", nargs="+", metavar="DIR", type=_path, help="the --workdir of study.py"
    )
    keep = commands.add_parser(
        "export",
        help="copy what is small of a study",
        description=(
            "Copy a study to another folder without checkpoints, logs and paths of this machine, "
            "and make its tables and figures there."
        ),
    )
    keep.add_argument("folder", metavar="DIR", type=_path, help="the --workdir of study.py")
    keep.add_argument("target", metavar="TARGET", type=_path, help="such as results/NAME")
    report = commands.add_parser(
        "report",
        help="make the tables in Markdown documents again",
        description=(
            "Fill the blocks <!-- study: KIND ARGUMENTS --> of documents with what the studies "
            "that they name have measured, and make the tables and figures of these studies. "
            "The kinds are described in pb_jax.study.report."
        ),
    )
    report.add_argument("documents", nargs="+", metavar="FILE.md", type=_path)
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())

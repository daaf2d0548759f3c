"""Tables and figures of existing studies: `python -m pb_jax.study tables DIR...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.study import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    status = 0
    for folder in options.folders:
        try:
            for path in write_report(folder):
                print(path)
        except UserError as error:  # the other folders may be in order
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
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
        "folders",
        nargs="+",
        metavar="DIR",
        type=lambda text: Path(text).expanduser(),
        help="the --workdir of study.py",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

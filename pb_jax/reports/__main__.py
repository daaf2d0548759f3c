"""Figures of existing runs: `python -m pb_jax.reports figures DIR...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.reports import write_figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    status = 0
    for workdir in options.workdirs:
        try:
            for path in write_figures(workdir):
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
        prog="python -m pb_jax.reports", description="Draw what runs of train.py have written."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    figures = commands.add_parser(
        "figures",
        help="make the figures of runs again",
        description=(
            "Draw the figures of runs, finished or not, into DIR/figures/, and print their paths: "
            "curves.png (loss and accuracy) and, for each mask that was made, the gradients and "
            "the frozen share of each layer. Figures that are there already are replaced."
        ),
    )
    figures.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        type=lambda text: Path(text).expanduser(),
        help="the --workdir of a run of train.py",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

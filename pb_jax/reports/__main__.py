"""Figures of existing runs: `python -m pb_jax.reports figures DIR...`, or `bleu NAME=DIR...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.reports import write_figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _figures(options: argparse.Namespace) -> int:
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


def _bleu(options: argparse.Namespace) -> int:
    from pb_jax.reports.captions import bleu_figure  # matplotlib: not at import

    try:
        print(bleu_figure(dict(options.runs), options.output, options.split))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.rpartition("=")
    path = Path(folder).expanduser()
    return (name if equals else path.resolve().name, path)


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
    figures.set_defaults(run=_figures)
    bleu = commands.add_parser(
        "bleu",
        help="compare the BLEU scores of captioners",
        description=(
            "Draw the BLEU-1 to BLEU-4 of finished runs of captioners as bars beside each other "
            "(the paper's figure 5), and print the path of the figure."
        ),
    )
    bleu.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]DIR",
        type=_named,
        help="the --workdir of a run of train.py, and what the figure is to call it",
    )
    bleu.add_argument(
        "--output", type=Path, default=Path("bleu.png"), help="the PNG file; default: bleu.png"
    )
    bleu.add_argument(
        "--split", choices=("test", "val"), default="test", help="whose scores; default: test"
    )
    bleu.set_defaults(run=_bleu)
    return parser


if __name__ == "__main__":
    sys.exit(main())

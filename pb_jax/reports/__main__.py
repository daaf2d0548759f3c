"""What is made of existing runs: `python -m pb_jax.reports DIR...`, `... figures DIR...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.errors import UserError
from pb_jax.reports import write_figures

_RUN = "the --workdir of a run of train.py, and what it is to be called"
COMMANDS = ("page", "figures", "bleu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "page")
    options = _parser().parse_args(arguments)
    return options.run(options)


def _page(options: argparse.Namespace) -> int:
    from pb_jax.reports.page import names_of, write_page  # matplotlib: not at import

    names = names_of([folder for _, folder in options.runs])
    runs = {
        given or name: folder for (given, folder), name in zip(options.runs, names, strict=True)
    }
    if len(runs) < len(options.runs):
        print("error: two runs have the same name; name them with NAME=DIR", file=sys.stderr)
        return 2
    (_, first), *others = options.runs
    output = options.output or (Path("report.html") if others else first / "report.html")
    try:
        print(write_page(runs, output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


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
        runs = {name or folder.resolve().name: folder for name, folder in options.runs}
        print(bleu_figure(runs, options.output, options.split))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _named(text: str) -> tuple[str, Path]:
    """A folder, and the name before it; "" where there is none."""
    name, _, folder = text.partition("=")
    if not folder or Path(text).expanduser().exists():  # names of folders have "=" too
        name, folder = "", text
    return name, Path(folder).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pb_jax.reports", description="Show what runs of train.py have written."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    page = commands.add_parser(
        "page",
        help="one page of HTML about runs; the word may be left out",
        description=(
            "Write one page about a run, or several beside one another, finished or not: summary, "
            "curves, threshold, frozen share of each layer, captions with attention, and in what "
            "the configurations differ. The file holds all that it shows and needs no network; "
            "it can be read on a phone, printed and sent."
        ),
    )
    page.add_argument("runs", nargs="+", metavar="[NAME=]DIR", type=_named, help=_RUN)
    page.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: DIR/report.html of one run, ./report.html of several",
    )
    page.set_defaults(run=_page)
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
        help=_RUN,
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

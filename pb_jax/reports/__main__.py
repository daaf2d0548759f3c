"""What is made of existing runs: `python -m pb_jax.reports DIR...`, `... figures DIR...`."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pb_jax import program
from pb_jax.errors import UserError

COMMANDS = ("page", "figures", "bleu")
_RUN = "the --workdir of a run of train.py, and what it is to be called"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "page")
    return _commands().run(arguments)


def _commands() -> program.Commands:
    commands = program.Commands(
        "python -m pb_jax.reports",
        "Show what runs of train.py have written. `python -m pb_jax.reports DIR...` makes a page.",
    )
    page = commands.add(
        "page",
        _page,
        "one page of HTML about runs; the word may be left out",
        "Write one page about a run, or several beside one another, finished or not: summary, "
        "curves, threshold, frozen share of each layer, captions with attention, and in what "
        "the configurations differ. The file holds all that it shows and needs no network; "
        "it can be read on a phone, printed and sent. The folder of a study stands for the runs "
        "of its first seed.",
    )
    page.add_argument("runs", nargs="+", metavar="[NAME=]DIR", type=_named, help=_RUN)
    page.add_argument(
        "--output",
        type=program.path,
        metavar="FILE",
        help="default: DIR/report.html of one run, ./report.html of several",
    )
    figures = commands.add(
        "figures",
        _figures,
        "make the figures of runs again",
        "Draw the figures of runs, finished or not, into DIR/figures/, and print their paths: "
        "curves.png (loss and accuracy) and, for each mask that was made, the gradients and "
        "the frozen share of each layer. Figures that are there already are replaced.",
    )
    figures.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        type=program.path,
        help="the --workdir of a run of train.py",
    )
    bleu = commands.add(
        "bleu",
        _bleu,
        "compare the BLEU scores of captioners",
        "Draw the BLEU-1 to BLEU-4 of finished runs of captioners as bars beside each other "
        "(the paper's figure 5), and print the path of the figure.",
    )
    bleu.add_argument("runs", nargs="+", metavar="[NAME=]DIR", type=_named, help=_RUN)
    bleu.add_argument(
        "--output",
        type=program.path,
        metavar="FILE",
        default=Path("bleu.png"),
        help="the PNG file; default: bleu.png",
    )
    bleu.add_argument(
        "--split", choices=("test", "val"), default="test", help="whose scores; default: test"
    )
    return commands


def _page(options: Namespace) -> None:
    from pb_jax.reports.page import names_of, write_page  # matplotlib: not at import

    (_, first), *others = options.runs
    output = options.output or (Path() if others else first) / "report.html"
    options.runs = [run for one in options.runs for run in _runs_of(*one)]
    found = names_of([folder for _, folder in options.runs])
    print(write_page(_by_name(options, found), output))


def _runs_of(name: str, folder: Path) -> list[tuple[str, Path]]:
    """The run itself, or a study's runs of its first seed."""
    if not (folder / "study.json").exists():
        return [(name, folder)]
    seeds = {path: path.name.removeprefix("seed_") for path in folder.glob("runs/**/seed_*")}
    numbers = {path: int(seed) for path, seed in seeds.items() if seed.isdecimal()}
    first = min(numbers.values(), default=0)
    return [("", path) for path, number in sorted(numbers.items()) if number == first]


def _figures(options: Namespace) -> int:
    from pb_jax.reports import write_figures

    def draw(workdir: Path) -> None:
        print(*write_figures(workdir), sep="\n")

    return program.each(options.workdirs, draw, debug=options.debug)


def _bleu(options: Namespace) -> None:
    from pb_jax.reports.captions import bleu_figure  # matplotlib: not at import

    runs = _by_name(options, [folder.resolve().name for _, folder in options.runs])
    try:
        print(bleu_figure(runs, options.output, options.split))
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error.strerror}") from error


def _by_name(options: Namespace, names: Sequence[str]) -> dict[str, Path]:
    """The folders by the names given to them, or else by `names`."""
    runs = {given or name: path for (given, path), name in zip(options.runs, names, strict=True)}
    if len(runs) < len(options.runs):
        raise UserError("two runs have the same name; name them with NAME=DIR")
    return runs


def _named(text: str) -> tuple[str, Path]:
    """A folder, and the name before it; "" where there is none."""
    name, _, folder = text.partition("=")
    if not folder or program.path(text).exists():  # names of folders have "=" too
        name, folder = "", text
    return name, program.path(folder)


if __name__ == "__main__":
    program.end(main())

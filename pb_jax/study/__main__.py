"""What is made of existing studies: `python -m pb_jax.study tables|export|report ...`."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pb_jax import program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    return _commands().run(arguments)


def _commands() -> program.Commands:
    commands = program.Commands(
        "python -m pb_jax.study", "Tables and figures of what study.py has run."
    )
    tables = commands.add(
        "tables",
        lambda options: _tables(options.folders, options),
        "make the tables and figures of studies again",
        "Make DIR/table.md, DIR/table.json and DIR/figures/ from the files of the runs, "
        "and print their paths. Runs that are not finished are listed below the table.",
    )
    folder = {"metavar": "DIR", "type": program.path, "help": "the --workdir of study.py"}
    tables.add_argument("folders", nargs="+", **folder)
    keep = commands.add(
        "export",
        _export,
        "copy what is small of a study",
        "Copy a study to another folder without checkpoints, logs and paths of this machine, "
        "and make its tables and figures there.",
    )
    keep.add_argument("folder", **folder)
    keep.add_argument("target", metavar="TARGET", type=program.path, help="such as results/NAME")
    report = commands.add(
        "report",
        _report,
        "make the tables in Markdown documents again",
        "Fill the blocks <!-- study: KIND ARGUMENTS --> of documents with what the studies "
        "that they name have measured, and make the tables and figures of these studies. "
        "The kinds are described in pb_jax.study.report.",
    )
    report.add_argument(
        "documents", nargs="+", metavar="FILE.md", type=program.path, help="to be changed in place"
    )
    return commands


def _tables(folders: Sequence[Path], options: Namespace) -> int:
    from pb_jax.study import write_report  # a second or two, so not at the top

    def make(folder: Path) -> None:
        print(*write_report(folder), sep="\n")

    return program.each(folders, make, debug=options.debug)


def _export(options: Namespace) -> int:
    from pb_jax.study.export import export

    print(f"{len(export(options.folder, options.target))} files in {options.target}")
    return _tables([options.target], options)


def _report(options: Namespace) -> int:
    from pb_jax.study.report import fill

    folders: list[Path] = []

    def make(document: Path) -> None:
        folders.extend(folder for folder in fill(document) if folder not in folders)
        print(document)

    status = program.each(options.documents, make, debug=options.debug)
    return max(status, _tables(folders, options))


if __name__ == "__main__":
    program.end(main())

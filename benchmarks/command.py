"""The command line of a benchmark."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from pb_jax.training import check_known


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the benchmark's docstring, with `--json` for what it measures."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as they come")
    return found


def names(known: Iterable[str], what: str) -> Callable[[str], list[str]]:
    """For an argument's `type`: comma-separated names, all of them among `known`.

    Its function raises a UserError, with a suggestion, at one that is not.
    """

    def several(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            check_known(name, known, what)
        return found

    return several


def numbers(text: str) -> list[float]:
    """For an argument's `type`: comma-separated numbers."""
    return [float(number) for number in text.split(",")]

"""Telling a waiting person what is going on, on standard error."""

import sys
from typing import Any


class Progress:
    """Status lines, and bars where standard error is a terminal.

    Args:
        enabled: False says nothing at all.

    Example:
        >>> progress = Progress(enabled=False)
        >>> progress.say("not shown")
        >>> with progress.bar("reading", total=2, unit="images") as bar:
        ...     _ = bar.update(2)
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def say(self, message: str) -> None:
        """Print one line."""
        if self.enabled:
            print(message, file=sys.stderr, flush=True)

    def bar(self, title: str, *, total: int, unit: str) -> Any:
        """Return a tqdm bar, a context manager; without a terminal it prints `title` once.

        Args:
            title: what is being done.
            total: how many units it takes.
            unit: "B" counts bytes; anything else is shown as it is.
        """
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        if not terminal:
            self.say(title)
        return tqdm(
            desc=title,
            total=total,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit == "B",
            unit_divisor=1024,
            disable=not (self.enabled and terminal),
            leave=False,
        )

"""Progress on a terminal, and plain lines in a pipe."""

import os
import shutil
import time
from collections.abc import Mapping
from typing import Any, TextIO

_BAR = 10


class Progress:
    """A line that moves while an epoch runs, and a line that stays for each epoch.

    The moving line is drawn on terminals only. Colour: not where `NO_COLOR` is set.

    Args:
        stream: where to write.
        epochs: epochs of the whole run.
        steps: steps in an epoch.
        batch_size: examples in a step.
    """

    interval = 1.0
    """Seconds between two drawings of the moving line."""

    def __init__(self, stream: TextIO, epochs: int, steps: int, batch_size: int) -> None:
        self._stream = stream
        self._epochs, self._steps, self._batch_size = epochs, steps, batch_size
        self._terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._terminal and not os.environ.get("NO_COLOR")
        self._drawn = False
        self._epoch, self._began, self._next = 0, 0.0, 0.0
        self._seconds: list[float] = []
        self.frozen: float | None = None
        """The share of frozen weights, where it is known."""

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def status(self, text: str) -> None:
        """Show what takes time, until the next line."""
        if self._terminal:
            self._draw(text)

    def begin(self, epoch: int, seconds: float = 0.0) -> None:
        """An epoch begins, or goes on after so many seconds of an earlier start."""
        self._epoch = epoch
        now = time.monotonic()
        self._began, self._next = now - seconds, now + self.interval / 4

    def due(self) -> bool:
        """Whether it is time to draw the moving line again."""
        return self._terminal and time.monotonic() >= self._next

    def update(self, steps: int, loss: float, accuracy: float) -> None:
        """Draw the moving line.

        Args:
            steps: made in this epoch.
            loss: their mean.
            accuracy: their share of right answers.
        """
        now = time.monotonic()
        self._next = now + self.interval
        spent = max(now - self._began, 1e-9)
        rate = steps / spent
        left = (self._steps - steps) / rate if rate else float("inf")
        whole = self._whole_run(left)
        full = round(_BAR * steps / self._steps)
        wide = shutil.get_terminal_size().columns >= 95
        bar = self._paint("━" * full, "─" * (_BAR - full)) + " " if wide else ""
        parts = [
            f"epoch {self._epoch}/{self._epochs} {bar}{steps}/{self._steps}",
            f"loss {loss:.3f}",
            f"{accuracy:.1%}",
            *([f"frozen {self.frozen:.1%}"] if self.frozen else []),
            f"{rate * self._batch_size:,.0f}/s",
            f"left {clock(left)}" + (f", {clock(whole)} in all" if whole else ""),
        ]
        self._draw("  ".join(parts))

    def end(self, record: Mapping[str, Any]) -> None:
        """Write the line of an epoch, from its line of `metrics.jsonl`."""
        self._seconds.append(record["seconds"])
        width = len(str(self._epochs))
        threshold = record["threshold"]
        parts = [
            f"epoch {record['epoch']:>{width}}/{self._epochs}",
            f"train {record['train_loss']:.4f} {record['train_accuracy']:.2%}",
            f"val {record['val_loss']:.4f} {record['val_accuracy']:.2%}",
            *([f"BLEU-4 {record['val_bleu4']:.3f}"] if "val_bleu4" in record else []),
            f"frozen {record['frozen_fraction']:.1%}",
            *([] if threshold is None or threshold != threshold else [f"t {threshold:.3g}"]),
            f"lr {record['learning_rate']:.3g}",
            f"{record['examples_per_second']:,.0f} ex/s",
            f"{record['seconds']:.1f} s",
        ]
        self.say("  ".join(parts))

    def close(self) -> None:
        """Take the moving line away."""
        self._clear()

    def _whole_run(self, left: float) -> float | None:
        """Seconds to the end of the run, once an epoch has shown how long one takes."""
        if not self._seconds:
            return None
        recent = self._seconds[-3:]
        return left + (self._epochs - self._epoch) * sum(recent) / len(recent)

    def _paint(self, done: str, rest: str) -> str:
        return f"\x1b[32m{done}\x1b[90m{rest}\x1b[0m" if self._colour else done + rest

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        colour_codes = len("\x1b[32m\x1b[90m\x1b[0m") if "\x1b[0m" in text else 0
        self._stream.write("\r\x1b[K" + text[: columns - 1 + colour_codes])
        self._stream.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def clock(seconds: float) -> str:
    """A duration as a clock shows it.

    Example:
        >>> clock(65), clock(3723), clock(float("inf"))
        ('1:05', '1:02:03', '?')
    """
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

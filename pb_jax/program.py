"""What all programs share: how they end, what they say of errors, what a terminal can show.

Modules that use it import what is heavy inside of functions: while the rest is imported, Ctrl-C has
nobody who would answer it.
"""

import argparse
import codecs
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

from pb_jax.errors import UserError

LEFT_ALONE = 3  # exit status where another process of the run is gone
INTERRUPTED, TERMINATED = 130, 143  # as shells count them
_PIPE_CLOSED = 141
_MOST_SAID = 3000  # letters of an error
_PLAIN = {
    "±": "+/-", "\u00d7": "x", "≤": "<=", "≥": ">=", "α": "alpha", "σ": "sigma", "…": "...",
    "\u2013": "-", "\u2014": "-", "\u2212": "-",
}  # fmt: skip

T = TypeVar("T")


class TerminatedError(BaseException):
    """The process was asked to end, by SIGTERM."""


def run(
    main: Callable[[], int | None], *, debug: bool = False, stopped: str = "interrupted"
) -> int:
    """Run a program's work; returns its exit status.

    Args:
        main: returns the status; None: 0.
        debug: whether errors of the user and interruptions show where they come from.
        stopped: what to say after Ctrl-C or SIGTERM.

    Returns:
        What `main` returns; the `status` of a `UserError`, 2 too where an environment variable of
        JAX has a value that it does not take; 130 and 143 where Ctrl-C or SIGTERM has
        stopped it; 141 where nobody reads its output any more, as in `... | head`.
    """
    plain_output()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        report(error, debug=debug)
        return error.status
    except (KeyboardInterrupt, TerminatedError) as stop:
        if debug:
            traceback.print_exc()
        print(stopped, file=sys.stderr, flush=True)
        return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
    except ValueError as error:
        if not _imports_jax(error):
            raise
        report(UserError(f"JAX does not start with this environment: {error}"), debug=debug)
        return UserError.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return status


def _imports_jax(error: Exception) -> bool:
    """Whether it was raised while JAX is imported, which reads JAX_... in the environment then."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        code.co_name == "<module>" and Path(code.co_filename).parts[-2:] == ("jax", "__init__.py")
        for code in frames
    )


def end(status: int) -> NoReturn:
    """End the process; after an error at once: an orderly end would wait for others.

    These are threads, such as those of orbax, which wait minutes for a write that has failed; and
    other processes, which may be gone.
    """
    if status:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit()


def interrupt_quietly() -> None:
    """Let Ctrl-C end the process without a stack trace, for programs that do not use `run`."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr, flush=True)
        else:
            shown(kind, error, trace)

    sys.excepthook = hook


def each(items: Iterable[T], work: Callable[[T], None], *, debug: bool = False) -> int:
    """Do some work for each item, for the others too where it fails for one; returns the status."""
    status = 0
    for item in items:
        try:
            work(item)
        except UserError as error:
            report(error, debug=debug)
            status = error.status
    return status


def report(error: UserError, *, debug: bool = False) -> None:
    """Say on standard error what is wrong."""
    if debug:
        traceback.print_exception(error)
    print(f"error: {message(error)}", file=sys.stderr, flush=True)


def message(error: UserError) -> str:
    r"""What an error says, fit for a terminal: not too long, and without control characters.

    >>> message(UserError("no such file: \x1b[2Ja"))
    'no such file: \\x1b[2Ja'
    """
    text = str(error)
    if len(text) > _MOST_SAID:
        text = f"{text[: _MOST_SAID // 2]} … {text[-_MOST_SAID // 2 :]}"
    return "".join(map(_visible, text))


def _visible(letter: str) -> str:
    # The last are bytes of a file's name, see `_in_other_words`.
    kept = letter.isprintable() or letter in "\n\t" or "\udc80" <= letter <= "\udcff"
    return letter if kept else ascii(letter)[1:-1]


def plain_output() -> None:
    """Write what a terminal's encoding lacks in other words, in place of a UnicodeEncodeError."""
    codecs.register_error("pb_jax.plain", _in_other_words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pb_jax.plain")  # pyright: ignore[reportAttributeAccessIssue]


def _in_other_words(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in letters):  # bytes of a file's name
        return os.fsencode(letters), error.end
    return "".join(
        _PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode()
        for letter in letters
    ), error.end


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TerminatedError


class Commands:
    """The command line of a program that does several things: `PROGRAM COMMAND ...`.

    Args:
        program: how it is called.
        description: what it does, for `--help`.

    Example:
        >>> commands = Commands("python -m program", "Say things.")
        >>> parser = commands.add("hello", lambda options: print("hello,", options.name), "Greet.")
        >>> _ = parser.add_argument("name")
        >>> commands.run(["hello", "you"])
        hello, you
        0
    """

    def __init__(self, program: str, description: str) -> None:
        self.parser = argparse.ArgumentParser(prog=program, description=description)
        self._commands = self.parser.add_subparsers(
            dest="command", required=True, metavar="COMMAND"
        )

    def add(
        self,
        name: str,
        work: Callable[[argparse.Namespace], int | None],
        help: str,
        description: str = "",
        *,
        stopped: str = "interrupted",
        **settings: Any,
    ) -> argparse.ArgumentParser:
        """Add a command; returns its parser, for its arguments.

        Args:
            name: of the command.
            work: what it does; returns the exit status, None: 0.
            help: a line about it.
            description: what its own `--help` says; empty: `help`.
            stopped: what to say after Ctrl-C.
            settings: of `argparse.ArgumentParser`.
        """
        parser = self._commands.add_parser(
            name, help=help, description=description or help, **settings
        )
        parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
        parser.set_defaults(work=work, stopped=stopped)
        return parser

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Do what the command line says; returns the exit status."""
        options = self.parser.parse_args(arguments)
        return run(lambda: options.work(options), debug=options.debug, stopped=options.stopped)


def path(text: str) -> Path:
    """A path on a command line: `~` is the user's home."""
    return Path(text).expanduser()

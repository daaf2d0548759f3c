"""Ctrl-C and SIGTERM while a run trains: a wish that is looked at between two steps."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import jax

from pb_jax.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
T = TypeVar("T")


class StoppedError(UserError):
    """Training was asked to end before its time, and has saved where it was."""


class _AskedError(BaseException):
    """Ends what is done under `Stopping.unless_asked`."""


class Stopping:
    """Notes the first of `SIGNALS`; a second one has the effect that it has outside, at once.

    When the block ends the noted one gets that effect too: a KeyboardInterrupt, the end of the
    process, whatever the caller has provided for. An error on its way out goes first.

    Signals that are ignored stay so. Nothing is noted in threads other than the main one, which
    signals do not reach, nor where several processes train together, which would have to end at
    the same step: there a signal has its effect at once.

    Example:
        >>> with Stopping() as stopping:
        ...     for step in range(3):
        ...         if stopping.asked:
        ...             break
        >>> step
        2
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._raises = False
        self._handlers: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where a signal has come before or while it works.

        Args:
            work: left in its midst then, so that it must not change anything.
        """
        try:
            try:
                self._raises = True
                return None if self.asked else work()
            finally:
                self._raises = False
        except _AskedError:
            return None

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in SIGNALS:
                # None: a handler that Python has not set, and could not put back.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if self._number is not None and (kind is None or issubclass(kind, StoppedError)):
            signal.raise_signal(self._number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self._restore()
            signal.raise_signal(number)
            return
        self._number = number
        if self._raises:
            raise _AskedError

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

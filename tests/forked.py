"""Processes of the harnesses: forked, so that none imports JAX again."""

import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)


def start(work: Callable[[], int | None]) -> int:
    """Start a process that does some work; returns its number.

    JAX may be imported, but must not have been used: its threads do not come along.

    Args:
        work: returns the exit status, None: 0. An exception is shown, and is status 99.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the threads
        process = os.fork()
    if process:
        return process
    status = 99
    try:
        if sys.platform == "linux":  # it ends with the harness, however that ends
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        status = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(process: int) -> int:
    """Wait for its end; a signal that has ended it is a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def output_to(path: str) -> None:
    """Append what this process prints to a file."""
    output = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)

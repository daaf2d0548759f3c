"""Training with several processes, one a host: how they find each other, and which of them writes.

All processes run the same program on the same configuration, and compute together; each reads its
share of the batches. The first writes metrics, figures and events; checkpoints are written by all.
What only the first knows, such as what a folder holds, it tells the others (`on_first`).
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pb_jax import program
from pb_jax.errors import UserError
from pb_jax.training.config import flatten

# Seconds without a sign of life after which a process counts as dead, and the others end.
_DEAD_AFTER = 30
_START_WITHIN = 300
_PATIENCE = 10  # before it is said that others are waited for


class PeerError(UserError):
    """Another process has ended, or cannot be reached."""

    status = program.LEFT_ALONE


def connect(config: Mapping[str, Any]) -> None:
    """Join the other processes of a run with `distributed`, and check that they are of one mind.

    Args:
        config: resolved.

    Raises:
        UserError: they are not found, or have another configuration; or there is no device of the
            kind that JAX_PLATFORMS asks for.
    """
    if config["distributed"] and not jax.distributed.is_initialized():
        chosen = config["processes"]
        try:
            with _not_for_ever(_START_WITHIN):
                jax.distributed.initialize(
                    chosen["coordinator"],
                    chosen["count"],
                    chosen["index"],
                    initialization_timeout=_START_WITHIN + _DEAD_AFTER,
                    heartbeat_timeout_seconds=_DEAD_AFTER,
                    shutdown_timeout_seconds=_DEAD_AFTER,
                )
        except (ValueError, RuntimeError, IndexError) as error:  # the last: no port
            raise _not_found(_in_short(error)) from error
        _hear_sigterm()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where it has no plugin for it
        wanted = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"JAX finds no device, with JAX_PLATFORMS={wanted!r} in the environment: "
            f"{_in_short(error) or 'it knows none of this kind'}\n"
            "Without JAX_PLATFORMS it takes the best that there is"
        ) from error
    _check_same(config)


def leave(status: int) -> None:
    """Before an end without success: let the others come to theirs, if there are any.

    They would be ended by JAX, in the midst of what they say, when the first is gone. Where they do
    not come within ten seconds the process ends here: JAX would wait longer, and then abort it.

    Args:
        status: the exit status.
    """
    if not jax.distributed.is_initialized():
        return
    alone = threading.Timer(_PATIENCE, program.end, (status,))
    alone.daemon = True
    alone.start()
    with contextlib.suppress(RuntimeError):  # not all have come
        jax.distributed.shutdown()
    alone.cancel()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> Any:
    """What `function` returns on the first process: the others wait for it.

    Args:
        function: called on the first process only; returns what JSON can hold.

    Raises:
        UserError: it raised one; all processes do.
    """
    if jax.process_count() == 1:
        return function()
    told: dict[str, Any] = {}
    try:
        if is_first():
            told["value"] = function()
    except Exception as error:  # the others must not wait for ever
        _tell({"error": str(error)})
        raise
    told = _tell(told)
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


def succeeded(here: bool) -> bool:
    """Whether all processes say so."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


@contextlib.contextmanager
def own_folder(workdir: Path) -> Iterator[Path]:
    """Where this process may write: the run's folder, or, not being the first, one that goes."""
    if is_first():
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="pb_jax_") as folder:
        yield Path(folder)


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error is, or comes of, what JAX raises where another process is gone."""
    return _of_peer(error) is not None


@contextlib.contextmanager
def peers_matter() -> Iterator[None]:
    """Turn what JAX raises when another process is gone into a `PeerError`."""
    try:
        yield
    except Exception as error:  # a checkpoint that cannot be written may come of it
        if (lost := _of_peer(error)) is None:
            raise
        raise PeerError(
            "another process of this run has ended, or cannot be reached: "
            f"{_in_short(lost)}\nStart all of them again, with the same commands, to resume"
        ) from error


def _of_peer(error: BaseException | None) -> BaseException | None:
    """The error of JAX that an error is or comes of, where there are other processes."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return error if jax.process_count() > 1 else None
        error = error.__cause__
    return None


def _hear_sigterm() -> None:
    """Put Python's handler back: JAX's service for preemptions takes the signal, and does nothing.

    It tells programs that ask it; this one ends.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _not_for_ever(seconds: float) -> Iterator[None]:
    """End the process, with an error of the user, where the others do not come.

    JAX waits for them where no exception can reach it, and then ends the process by a stack trace.
    """
    come = threading.Event()

    def watch() -> None:
        if come.wait(min(_PATIENCE, seconds)):
            return
        print("waiting for the other processes of this run", file=sys.stderr, flush=True)
        if not come.wait(seconds - _PATIENCE):
            error = _not_found(f"not all have come within {seconds:.0f} s")
            program.report(error)
            program.end(error.status)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        come.set()


def _not_found(why: str) -> UserError:
    return UserError(
        f"distributed=True, but the processes do not find each other: {why}\n"
        "Outside of SLURM, Open MPI and cloud TPUs give each of them "
        "--config.processes.coordinator=HOST:PORT (an address of the first), "
        "--config.processes.count=N and --config.processes.index=0 to N-1"
    )


def _tell(value: dict[str, Any]) -> dict[str, Any]:
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    sent = np.resize(text, size) if text.size != size else text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def _check_same(config: Mapping[str, Any]) -> None:
    if jax.process_count() == 1:
        return
    mine = {k: v for k, v in flatten(config).items() if not k.startswith("processes.")}
    mine = json.loads(json.dumps(mine))
    first = on_first(lambda: mine)
    different = sorted(name for name in mine if mine[name] != first.get(name))
    if not succeeded(mine == first):
        there = f": {', '.join(different)} here" if different else ""
        raise UserError(f"the processes of this run have different configurations{there}")


def _in_short(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]

"""Timing training steps in turns, in processes of their own.

What else has lived in a process decides how long a step takes there, by a seventh: it
finds the memory in pieces. And which memory a process gets, decides it by some hundredths.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax

from benchmarks.cores import round_trip_ns
from pb_jax.errors import UserError

# Several processes share a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

_NEAR = 1.5  # times the shortest way between cores

Step = Callable[[], float]
"""Makes an update, or as many as are known as its "updates", waits, and returns the loss before the
last of them."""

Run = Callable[[int], list[float]]
"""Makes so many updates, and returns the seconds of each."""


class EndedError(UserError):
    """The process of a step ended by itself."""


class StepProcess:
    """Steps in a process of their own, to be timed and asked about.

    Args:
        module: what to run: it makes the steps and then calls `serve`.
        **wanted: the steps; its only argument, as JSON.

    Attributes:
        known: what the module says of each.
        loss: of the one that was timed last, before its last update.

    Raises:
        EndedError: it cannot make them.
    """

    def __init__(self, module: str, **wanted: Any) -> None:
        command = [sys.executable, "-m", module, json.dumps(wanted)]
        self._process = subprocess.Popen(  # noqa: S603 - a module of this package
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loss = float("nan")
        self.known: list[dict[str, Any]] = self._answer()

    def __call__(self, steps: int, which: int = 0) -> list[float]:
        """Seconds of an update in each of so many steps, one after the other."""
        seconds, self.loss = self.ask("time", steps, which)
        updates = self.known[which].get("updates", 1)
        return [taken / updates for taken in seconds]

    def runs(self) -> list[Run]:
        """The same for each of the steps."""
        return [functools.partial(self, which=which) for which in range(len(self.known))]

    def ask(self, what: str, steps: int, which: int = 0) -> Any:
        """What the module's process answers."""
        assert self._process.stdin is not None
        print(what, steps, which, file=self._process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        self._process.communicate()
        raise EndedError("the process of a step ended: see above")


def serve(make: Callable[..., Sequence[tuple[Step, dict[str, Any]]]], **more: Any) -> None:
    """Be the process of a `StepProcess`.

    Args:
        make: from what is wanted to steps and what is known of each.
        **more: besides "time", from a step and a number of updates to an answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to the terminal
    made, known = zip(*make(**json.loads(sys.argv[1])), strict=True)
    print(json.dumps(known), file=answers, flush=True)
    asked = {"time": timed, **more}
    for line in sys.stdin:
        what, steps, which = line.split()
        print(json.dumps(asked[what](made[int(which)], int(steps))), file=answers, flush=True)


def updates_of_a_step() -> int:
    """One; on an accelerator, which does not wait for the host between them, twenty."""
    return 1 if jax.default_backend() == "cpu" else 20


def steps_of_a_turn(name: str) -> int:
    """So many that a clock and what else the machine does hardly count."""
    return 100 if name == "lenet5" and jax.default_backend() == "cpu" else 1


def timed(step: Step, steps: int) -> tuple[list[float], float]:
    """Seconds of each step, and the last loss."""
    seconds, loss = [], float("nan")
    for _ in range(steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    return seconds, loss


class Turn(NamedTuple):
    """Of some ways, one after the other.

    Attributes:
        seconds: of a step of each.
        trips: from one core to the other and back, in nanoseconds, before and after.
    """

    seconds: dict[str, float]
    trips: tuple[float, float]


def take_turns(
    ways: Mapping[str, Run], repeats: int, run: int, before: Sequence[Turn] = ()
) -> list[Turn]:
    """Time the ways in turns: the median of `run` steps of each, after one more.

    Each turn begins with another way: the first is quicker by a percent, after the look at the
    cores.

    Args:
        ways: what makes their steps.
        repeats: turns in which the cores were about as near to each other as at best, if three
            times as many turns bring so many.
        run: steps.
        before: turns that tell how near the cores can be.
    """
    for steps in ways.values():
        steps(2)
    taken: list[Turn] = []
    order, last = deque(ways), _trip()
    while len(taken) < 3 * repeats:
        seconds = {}
        order.rotate(-1)
        for way in order:
            time.sleep(0.1)  # threads spin for a while after their last work
            seconds[way] = statistics.median(ways[way](run + 1)[1:])
        trips = last, _trip()
        last = trips[1]
        taken.append(Turn({way: seconds[way] for way in ways}, trips))
        if sum(_near(taken, (*before, *taken))) >= repeats:
            break
    return taken


def parted(
    turns: Sequence[Turn], known: Sequence[Turn]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each way in the turns with near cores, and in the others.

    Where no turn was such: in all, and in none.

    Args:
        turns: of the same ways.
        known: these and others, which tell how near the cores can be.
    """
    near = _near(turns, known)
    if not any(near):
        near = [True] * len(near)

    def those(wanted: bool) -> dict[str, list[float]]:
        chosen = [turn for turn, is_near in zip(turns, near, strict=True) if is_near == wanted]
        return {way: [turn.seconds[way] for turn in chosen] for way in turns[0].seconds}

    return those(True), those(False)


def _trip() -> float:
    """Between two cores; an accelerator's steps do not depend on it."""
    return round_trip_ns() if jax.default_backend() == "cpu" else 0.0


def _near(turns: Sequence[Turn], known: Sequence[Turn]) -> list[bool]:
    shortest = min(min(turn.trips) for turn in known)
    return [max(turn.trips) <= _NEAR * shortest for turn in turns]


def ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of each turn, which slow changes of the machine leave alone."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))

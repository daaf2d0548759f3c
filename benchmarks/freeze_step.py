"""A training step by what is frozen: in full, under a dense mask, compact, whole channels; PyTorch.

    python -m benchmarks.freeze_step [--models lenet5,captioner] [--frozen 0.8] [--rounds 3]
        [--json FILE]

The steps are those that `train.py` compiles, on random data, in batches of 100 (captioner: 60
captions of 16 words over features of 8 x 8 x 1280). The masks are random, or, for "kde_otsu" in
the place of a share, what that rule makes of the gradients of the first batch.

    full              full training
    dense             the mask on dense arrays: freeze.compact=false
    compact           optimizer state for what trains only
    channel           the same with whole output channels frozen: freeze.granularity=channel
    PyTorch           eager, channels last, `Adam(amsgrad=True)`
    PyTorch masked    the same with `grad *= mask`, as in the paper's appendix
    PyTorch compiled  `torch.compile` of network and loss, where asked for by --torch-compile

Ours share a process, started anew for each round; PyTorch's steps have processes of their own. They
take turns, so that what disturbs the machine disturbs all: medians of their times, and of each
turn's ratios to full training, of the turns in which the machine's cores were as near to each other
as at best (`benchmarks.cores`); "far": of the others, and how many these were. "step MB" is
what the compiled step needs at once: arguments, results that are not written over them, and
temporaries, as XLA plans it.

On an accelerator a step is one of twenty, which are one program, as an epoch is in `train.py` (the
captioner's are dispatched one by one); PyTorch waits for the last of twenty, with TF32 and its own
choice of algorithms, as XLA has them.
"""

import contextlib
import statistics
import sys
from typing import Any

import models
from benchmarks import command
from benchmarks.jax_steps import TRAINED, WAYS, train_process
from benchmarks.processes import (
    EndedError,
    Run,
    StepProcess,
    Turn,
    parted,
    ratio,
    steps_of_a_turn,
    take_turns,
)
from benchmarks.rows import Rows, machine
from benchmarks.torch_steps import torch_process
from pb_jax.errors import UserError
from pb_jax.program import run

KNOWN = ("compile_s", "state_mb", "step_mb")
COLUMNS = ("network", "frozen", "way", "seconds", "of_full", *KNOWN, "turns", "far", "far_of_full")

Started = dict[str, StepProcess]
"""Processes by the way whose steps they make; "ours": all of ours."""


def start(
    stack: contextlib.ExitStack, name: str, frozen: float | None, torch_ways: list[str]
) -> Started:
    """The processes of a network, which end with the stack; `torch.compile` may fail."""
    started = {"ours": stack.enter_context(train_process(name, WAYS, frozen))}
    for way in torch_ways if name in models.NAMES else ():
        masked, compiled = way == "PyTorch masked", way == "PyTorch compiled"
        try:
            share = started["ours"].known[1]["frozen"] if masked else None
            process = torch_process(name, frozen=share, compiled=compiled)
        except EndedError as problem:
            if not compiled:
                raise
            print(f"{name}, {way}: {problem}", file=sys.stderr)
        else:
            started[way] = stack.enter_context(process)
    return started


def measure(name: str, started: Started, repeats: int, before: list[Turn]) -> list[Turn]:
    """The turns of a network; `before`: those that tell how near the cores can be."""
    ways: dict[str, Run] = dict(zip(WAYS, started["ours"].runs(), strict=True))
    ways |= {way: process for way, process in started.items() if way != "ours"}
    return take_turns(ways, repeats, steps_of_a_turn(name), before)


def table(
    name: str, frozen: float | None, started: Started, taken: list[Turn], turns: list[Turn]
) -> list[tuple[Any, ...]]:
    """The rows of a network; `turns`: of all networks so far."""
    known = dict(zip(WAYS, started["ours"].known, strict=True))
    known |= {way: process.known[0] for way, process in started.items() if way != "ours"}
    near, far = parted(taken, turns)
    rows = []
    for way, seconds in near.items():
        of_full = ratio(seconds, near["full"])
        numbers = [known[way].get(column) for column in KNOWN]
        of_far = (len(far[way]), ratio(far[way], far["full"]) if far[way] else None)
        median = statistics.median(seconds)
        share = known["channel" if way == "channel" else "dense"]["frozen"]
        share = share if frozen is None else frozen
        rows.append((name, share, way, median, of_full, *numbers, len(seconds), *of_far))
    return rows


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(TRAINED, "network")
    parser.add_argument("--models", type=networks, default=",".join(TRAINED))
    known = "shares; kde_otsu: what that rule freezes (0.8)"
    parser.add_argument("--frozen", type=_shares, default="0.8", help=known)
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that the processes are started (3)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each round (5)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--torch-compile", action="store_true", help="try torch.compile too")
    arguments = parser.parse_args()
    torch_ways = [] if arguments.no_torch else ["PyTorch", "PyTorch masked"]
    if arguments.torch_compile:
        torch_ways.append("PyTorch compiled")

    # A few networks at a time keep the machine quiet; rows of the others stay.
    rows = Rows(arguments.json, COLUMNS, arguments.models)
    turns: list[Turn] = []
    device = machine()
    print(f"{device['device']}, jax {device['jax']}, {device['date']}")
    print(
        f"{'network':12} {'frozen':>6} {'way':16} {'ms':>8} {'of full':>8} "
        f"{'far':>10} {'compile s':>9} {'state MB':>9} {'step MB':>8}"
    )
    for name in arguments.models:
        for frozen in arguments.frozen:
            taken: list[Turn] = []
            started: Started = {}
            for _ in range(arguments.rounds):
                with contextlib.ExitStack() as stack:
                    started = start(stack, name, frozen, torch_ways)
                    taken += measure(name, started, arguments.repeats, turns + taken)
            turns += taken
            found = table(name, frozen, started, taken, turns)
            for row in found:
                cells = ["" if value is None else f"{value:.1f}" for value in row[5:8]]
                far = "" if row[10] is None else f"{row[10]:.2f} ({row[9]})"
                print(
                    f"{row[0]:12} {row[1]:6.0%} {row[2]:16} {row[3] * 1e3:8.1f} {row[4]:8.2f} "
                    f"{far:>10} {cells[0]:>9} {cells[1]:>9} {cells[2]:>8}",
                    flush=True,
                )
            rows.add(*found)
    return 0


def _shares(text: str) -> list[float | None]:
    return [_share(one) for one in text.split(",")]


def _share(text: str) -> float | None:
    if text == "kde_otsu":
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise UserError(f"--frozen {text}: shares from 0 to below 1, or kde_otsu")


if __name__ == "__main__":
    sys.exit(run(main))

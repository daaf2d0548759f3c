"""A training step by what is frozen: in full, under a dense mask, compact, whole channels; PyTorch.

    python -m benchmarks.freeze_step [--models lenet5,captioner] [--frozen 0.8] [--rounds 3]
        [--json FILE]

The steps are those that `train.py` compiles, on random data, in batches of 100 (captioner: 60
captions of 16 words over features of 8 x 8 x 1280). The masks are random.

    full              full training
    dense             the mask on dense arrays: freeze.compact=false
    compact           optimizer state for what trains only
    channel           the same with whole output channels frozen: freeze.granularity=channel
    PyTorch           eager, channels last, `Adam(amsgrad=True)`
    PyTorch masked    the same with `grad *= mask`, as in the paper's appendix
    PyTorch compiled  `torch.compile` of network and loss, where asked for by --torch-compile

Each has a process of its own, as a training has, and takes turns with full training, so that what
disturbs the machine disturbs both: medians of their times, and of each turn's ratios, of the turns
in which the machine's cores were as near to each other as at best (`benchmarks.cores`); "far": of
the others. "step MB" is
what the compiled step needs at once: arguments, results that are not written over them, and
temporaries, as XLA plans it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import models
from benchmarks.jax_steps import TRAINED, train_process
from benchmarks.processes import StepProcess, Turn, parted, ratio, take_turns
from benchmarks.rows import machine, write_rows
from benchmarks.torch_steps import torch_process

KNOWN = ("compile_s", "state_mb", "step_mb")
COLUMNS = ("network", "frozen", "way", "seconds", "of_full", *KNOWN, "turns", "far_of_full")
WAYS = ("full", "dense", "compact", "channel")


def process(name: str, way: str, frozen: float) -> StepProcess:
    """A way's step."""
    if way in WAYS:
        return train_process(name, way, frozen)
    share = frozen if way == "PyTorch masked" else None
    return torch_process(name, frozen=share, compiled=way == "PyTorch compiled")


def measure(
    name: str, frozen: float, torch_ways: list[str], rounds: int, repeats: int
) -> list[tuple[Any, ...]]:
    """The rows of a network at a frozen share."""
    others = [*WAYS[1:], *(torch_ways if name in models.NAMES else ())]
    known: dict[str, dict[str, Any]] = {}
    beside: dict[str, list[Turn]] = {way: [] for way in others}
    taken: list[Turn] = []
    for _ in range(rounds):
        with process(name, "full", frozen) as full:
            known["full"] = full.known
            for way in others:
                with process(name, way, frozen) as other:
                    known[way] = other.known
                    ways, run = {"full": full, way: other}, 100 if name == "lenet5" else 1
                    found = take_turns(ways, repeats, run, taken)
                beside[way] += found
                taken += found

    def row(way: str, near: list[float], of_full: float, far: float | None) -> tuple[Any, ...]:
        numbers = [known[way].get(column) for column in KNOWN]
        return name, frozen, way, statistics.median(near), of_full, *numbers, len(near), far

    both = {way: parted(beside[way], taken) for way in others}
    in_full = [second for near, _ in both.values() for second in near["full"]]
    return [
        row("full", in_full, 1.0, None),
        *(
            row(
                way,
                near[way],
                ratio(near[way], near["full"]),
                ratio(far[way], far["full"]) if far[way] else None,
            )
            for way, (near, far) in both.items()
        ),
    ]


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(TRAINED))
    parser.add_argument("--frozen", default="0.8")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (3)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each round (5)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--torch-compile", action="store_true", help="try torch.compile too")
    parser.add_argument("--json", type=Path, help="write here, beside what is there of others")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if unknown := [name for name in names if name not in TRAINED]:
        return _refuse(f"--models {','.join(unknown)}: choose of {', '.join(TRAINED)}")
    torch_ways = [] if arguments.no_torch else ["PyTorch", "PyTorch masked"]
    if arguments.torch_compile:
        torch_ways.append("PyTorch compiled")

    rows: list[tuple[Any, ...]] = []
    device = machine()
    print(f"{device['device']}, jax {device['jax']}, {device['date']}")
    print(
        f"{'network':12} {'frozen':>6} {'way':16} {'ms':>8} {'of full':>8} "
        f"{'far':>6} {'compile s':>9} {'state MB':>9} {'step MB':>8}"
    )
    for name in names:
        for frozen in arguments.frozen.split(","):
            found = measure(name, float(frozen), torch_ways, arguments.rounds, arguments.repeats)
            rows.extend(found)
            for row in found:
                cells = ["" if value is None else f"{value:.1f}" for value in row[5:8]]
                far = "" if row[9] is None else f"{row[9]:.2f}"
                print(
                    f"{row[0]:12} {row[1]:6.0%} {row[2]:16} {row[3] * 1e3:8.1f} {row[4]:8.2f} "
                    f"{far:>6} {cells[0]:>9} {cells[1]:>9} {cells[2]:>8}",
                    flush=True,
                )
    if arguments.json:
        # A few networks at a time keep the machine quiet; rows of the others stay.
        if arguments.json.exists():
            there = json.loads(arguments.json.read_text())["rows"]
            rows = [*(tuple(row) for row in there if row[0] not in names), *rows]
        write_rows(arguments.json, COLUMNS, rows)
    return 0


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

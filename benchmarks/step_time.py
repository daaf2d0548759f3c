"""Times one training step on CPU: PyTorch, JAX with its stock convolution, and these networks.

    python -m benchmarks.step_time [--models lenet5,vgg19] [--batch 100] [--rounds 3] [--json FILE]

All three make the same step from the same parameters: forward, backward, running statistics and
AMSGrad. PyTorch runs as in the paper's appendix, eagerly, in the channels-last layout. Each has a
process of its own. They take turns, so that what disturbs the machine disturbs all of them: medians
of their times, and of each turn's ratios. Turns in which a virtual machine's cores were farther
from each other than at best (`benchmarks.cores`) stand apart.
"""

import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import models
from benchmarks import command
from benchmarks.jax_steps import same_process
from benchmarks.processes import Turn, parted, ratio, steps_of_a_turn, take_turns
from benchmarks.rows import check_machine, machine, read_results, something_else
from benchmarks.torch_steps import torch_process
from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.program import run


def measure(
    name: str, size: int, rounds: int, repeats: int, stock: bool, before: list[Turn]
) -> dict[str, Any]:
    """Median seconds of a step of each kind, and how they compare.

    `before`: the turns of other networks, which tell how near the cores can be; its own are added.
    """
    known: dict[str, dict[str, Any]] = {}
    taken: list[Turn] = []
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            steps = {"pytorch": stack.enter_context(torch_process(name, size))}
            for kind in ("pb_jax", "stock") if stock else ("pb_jax",):
                steps[kind] = stack.enter_context(same_process(name, size, kind == "stock"))
            known = {kind: step.known[0] for kind, step in steps.items()}
            # The first steps fetch memory and choose algorithms; all must begin with one loss.
            for step in steps.values():
                step(1)
            first = {kind: step.loss for kind, step in steps.items()}
            if not np.allclose(list(first.values()), first["pytorch"], rtol=1e-4):
                raise AssertionError(f"{name}: the steps compute different losses: {first}")
            taken += take_turns(steps, repeats, steps_of_a_turn(name), before + taken)
    before += taken
    near, far = parted(taken, before)
    pytorch = known.pop("pytorch")
    depends = {
        "batch": size,
        "torch": pytorch["torch"],
        "torch_threads": pytorch["torch_threads"],
        "compile_seconds": {kind: ours["compile_s"] for kind, ours in known.items()},
    }
    return {**depends, **compared(near), "far": compared(far)}


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of some turns."""
    if not times["pytorch"]:
        return {"turns": 0}
    return {
        "turns": len(times["pytorch"]),
        "seconds": {kind: statistics.median(taken) for kind, taken in times.items()},
        "ratio_to_pytorch": {kind: ratio(times[kind], times["pytorch"]) for kind in times},
    }


def earlier(file: Path) -> dict[str, Any]:
    """The results in a file, by network; a UserError where they are not of this machine."""
    found = read_results(file)
    if found.keys() != {"machine", "results"}:
        raise something_else(file)
    check_machine(file, found["machine"])
    return found["results"]


def main() -> int:
    """Measure, print a table, write the JSON file."""
    parser = command.parser(__doc__)
    networks = command.names(models.NAMES, "network")
    parser.add_argument("--models", type=networks, default=",".join(models.NAMES))
    parser.add_argument("--batch", type=int, default=100, help="images a step (100)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (3)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="turns of each round; 100 steps each of LeNet-5, one of the others (5)",
    )
    parser.add_argument("--no-stock", action="store_true", help="leave the stock convolution out")
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        raise UserError("step_time measures the CPU: set JAX_PLATFORMS=cpu")
    print(
        f"{'ms a step':14}{'PyTorch':>10}{'stock':>10}{'pb_jax':>10}{'ratio':>8}{'compile s':>11}"
    )
    # One network at a time keeps the machine quiet; results of the others stay.
    file = arguments.json
    results = earlier(file) if file and file.exists() else {}
    turns: list[Turn] = []
    for name in arguments.models:
        result = measure(
            name,
            arguments.batch,
            arguments.rounds,
            arguments.repeats,
            not arguments.no_stock,
            turns,
        )
        results[name] = result
        if file:
            write_json(file, {"machine": machine(), "results": results})
        seconds = result["seconds"]
        cells = [f"{seconds[k] * 1e3:.1f}" if k in seconds else "" for k in ("pytorch", "stock")]
        print(
            f"{name:14}{cells[0]:>10}{cells[1]:>10}{seconds['pb_jax'] * 1e3:10.1f}"
            f"{result['ratio_to_pytorch']['pb_jax']:8.2f}{result['compile_seconds']['pb_jax']:11.1f}",
            flush=True,
        )
        if far := result["far"]["turns"]:
            farther = result["far"]["ratio_to_pytorch"]["pb_jax"]
            print(f"{'':14}{far} more turns, with cores farther from each other{farther:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""A training step by what is frozen: in full, under a dense mask, compact, whole channels; PyTorch.

    python -m benchmarks.freeze_step [--models lenet5,captioner] [--frozen 0.8] [--json FILE]

The steps are those that `train.py` compiles, on random data, in batches of 100 (captioner: 60
captions of 16 words over features of 8 x 8 x 1280). The masks are random.

    full              full training
    dense             the mask on dense arrays: freeze.compact=false
    compact           optimizer state for what trains only
    channel           the same with whole output channels frozen: freeze.granularity=channel
    PyTorch           eager, channels last, `Adam(amsgrad=True)`
    PyTorch masked    the same with `grad *= mask`, as in the paper's appendix
    PyTorch compiled  `torch.compile` of network and loss, where asked for by --torch-compile

The steps take turns, so that what disturbs the machine disturbs all: medians of their times, and of
each turn's ratios to full training, of the turns in which the machine's cores were as near to each
other as at best (`benchmarks.cores`). PyTorch has processes of its own. "step MB" is what the
compiled step needs at once: arguments, results that are not written over them, and temporaries, as
XLA plans it.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models

models.reuse_host_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

import pb_jax  # noqa: E402
from benchmarks.rows import machine, write_rows  # noqa: E402
from benchmarks.torch_steps import TorchStep, ratio, timed, turns  # noqa: E402
from pb_jax.data import Dataset, Split, Vocabulary  # noqa: E402
from pb_jax.training import (  # noqa: E402
    Captioning,
    Classification,
    Freezing,
    Pictures,
    optimizers,
)
from pb_jax.training.constants import of_changing, split_constants  # noqa: E402
from pb_jax.training.step import Steps, Totals, strong  # noqa: E402
from pb_jax.training.task import Task  # noqa: E402

COLUMNS = ("network", "frozen", "way", "seconds", "of_full", "compile_s", "state_mb", "step_mb")
TRAINED = (*models.NAMES, "captioner")
WAYS = ("full", "dense", "compact", "channel")
BATCHES = 3


def classifier(name: str) -> Task:
    """A network on random images."""
    rng = np.random.default_rng(0)
    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    size = 100 * BATCHES
    images = rng.integers(0, 256, (size, *shape), np.uint8)
    split = Split(images, rng.integers(0, 10, size).astype(np.int32))
    channels = shape[-1]
    names = tuple("0123456789")
    data = Dataset("random", split, split, 10, names, (0.5,) * channels, (0.25,) * channels)
    return Classification(models.create(name, rngs=nnx.Rngs(0)), data, 100)


def captioner() -> Task:
    """The captioner at the paper's sizes on random features and captions of one length."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(2500)]
    count = 60 * BATCHES
    captions = [(" ".join(rng.choice(words, 15)),) for _ in range(count)]
    features = rng.normal(size=(count, 8, 8, 1280)).astype(np.float16)
    pictures = Pictures([f"{i}.jpg" for i in range(count)], features, captions)
    vocabulary = Vocabulary.build([" ".join(words)], min_count=1)
    model = models.Captioner(len(vocabulary), channels=1280, rngs=nnx.Rngs(0))
    return Captioning(model, pictures, pictures, pictures, vocabulary, 60)


class Ours:
    """One way to train, compiled, with its state; `options` are more of the compiler's."""

    def __init__(
        self, name: str, way: str, frozen: float, options: Mapping[str, str | bool] | None = None
    ) -> None:
        task = captioner() if name == "captioner" else classifier(name)
        rate = 5e-4 if name == "captioner" else 1e-3
        optimizer = optimizers.adjustable("adam" if name == "captioner" else "amsgrad_torch", rate)
        rule = pb_jax.random(frozen)
        freezing = Freezing(
            pb_jax.by_group(rule, "channel") if way == "channel" else rule,
            task.steps_per_epoch,
            compact=way in ("compact", "channel"),
        )
        steps = Steps(task, optimizer, None if way == "full" else freezing)
        state = strong(steps.initial(task.params, task.model_state))
        if way != "full":
            assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
            select = jax.jit(freezing.select)
            selection = select(state.opt_state, state.params, state.params)
            state = state._replace(opt_state=state.opt_state._replace(mask=selection.mask))
            state, _ = steps.compacted(state)
            steps = steps.narrowed(state)
        order = task.order(0, 1)
        train = of_changing(functools.partial(steps.train, length=order.lengths[0]))
        changing, constants = split_constants(state)
        self._data = task.train_data()
        self._held: Any = changing, Totals.empty()
        self._read = constants, jnp.asarray(order.rows)
        options = {**models.compiler_options(jax.default_backend()), **(options or {})}
        start = time.perf_counter()
        self.compiled = (
            jax.jit(train, donate_argnums=0, compiler_options=options)
            .lower(*self._in_order())
            .compile()
        )
        self.compile_s = time.perf_counter() - start
        self.state_mb = megabytes(state.opt_state)
        plan = self.compiled.memory_analysis()
        self.step_mb = None
        if plan is not None:
            results = plan.output_size_in_bytes - plan.alias_size_in_bytes
            total = plan.argument_size_in_bytes + results + plan.temp_size_in_bytes
            self.step_mb = (total - sum(a.nbytes for a in jax.tree.leaves(self._data))) / 1e6

    def __call__(self, steps: int) -> list[float]:
        """Seconds of each of so many steps, one after the other."""
        return timed(self._one, steps)[0]

    def _in_order(self) -> tuple[Any, ...]:
        (changing, totals), (constants, rows) = self._held, self._read
        return changing, constants, totals, self._data, rows

    def _one(self) -> float:
        self._held = self.compiled(*self._in_order())
        self._held[1].steps.block_until_ready()  # as the training loop waits
        return float("nan")  # the loss is not looked at


def megabytes(tree: Any) -> float:
    """Of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


def pytorch(name: str, way: str, frozen: float) -> TorchStep:
    """A step of PyTorch."""
    share = frozen if way == "PyTorch masked" else None
    return TorchStep(name, frozen=share, compiled=way == "PyTorch compiled")


def measure(name: str, frozen: float, torch_ways: list[str], repeats: int) -> list[tuple[Any, ...]]:
    """The rows of a network at a frozen share."""
    ours = {way: Ours(name, way, frozen) for way in WAYS}
    theirs = {way: pytorch(name, way, frozen) for way in torch_ways if name in models.NAMES}
    taken, far = turns({**ours, **theirs}, repeats, 100 if name == "lenet5" else 1)
    for step in theirs.values():
        step.close()
    if left_out := len(far["full"]):
        print(f"{name:12} {left_out} turns with cores farther from each other are left out")
    rows = []
    for way, seconds in taken.items():
        one = ours.get(way)
        known = (None, None, None) if one is None else (one.compile_s, one.state_mb, one.step_mb)
        of_full = ratio(seconds, taken["full"])
        rows.append((name, frozen, way, statistics.median(seconds), of_full, *known))
    return rows


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(TRAINED))
    parser.add_argument("--frozen", default="0.8")
    parser.add_argument("--repeats", type=int, default=5, help="turns (5)")
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
        f"{'compile s':>9} {'state MB':>9} {'step MB':>8}"
    )
    for name in names:
        for frozen in arguments.frozen.split(","):
            for row in measure(name, float(frozen), torch_ways, arguments.repeats):
                rows.append(row)
                cells = ["" if value is None else f"{value:.1f}" for value in row[5:]]
                print(
                    f"{row[0]:12} {row[1]:6.0%} {row[2]:16} {row[3] * 1e3:8.1f} {row[4]:8.2f} "
                    f"{cells[0]:>9} {cells[1]:>9} {cells[2]:>8}",
                    flush=True,
                )
            jax.clear_caches()
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

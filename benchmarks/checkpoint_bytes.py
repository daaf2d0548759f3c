"""Bytes of a checkpoint on disk, full and delta, by the share of frozen weights.

    python -m benchmarks.checkpoint_bytes [--models lenet5,vgg19] [--json FILE]

Parameters and AMSGrad's moments are random numbers, which do not compress; the mask is random over
all weights. A delta holds what trains, its moments and the packed mask; its base, the frozen
weights, is written once for all deltas of a mask. Sizes are those of the files.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import models
import pb_jax
from benchmarks import command
from benchmarks.rows import Rows
from benchmarks.state_bytes import FROZEN, parameters
from pb_jax.program import run
from pb_jax.training import Freezing, optimizers
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.step import TrainState

COLUMNS = ("network", "weights", "frozen", "full", "delta", "base")


def trained(name: str) -> TrainState:
    """A state of the network's shapes without a number that repeats."""
    shapes = parameters(name)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = {
        path: jax.random.normal(key, leaf.shape)
        for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
    }
    optimizer = optimizers.adjustable("amsgrad_torch", 1e-3)
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    _, inner = optimizer.update(params, optimizer.init(params), params)
    opt_state = pb_jax.PartialBackpropState(jnp.int32(1), mask, jnp.float32(jnp.nan), inner)
    return TrainState(jnp.int32(1), params, {}, opt_state)


def size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def save(state: TrainState) -> tuple[int, int]:
    """Bytes of a checkpoint of the state, and of its base."""
    record: dict[str, Any] = {"epoch": 1, "val_accuracy": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        checkpoints.save(state, record)
        checkpoints.wait()
        checkpoints.close()
        base = Path(folder) / "checkpoints" / "base"
        return size(Path(folder) / "checkpoints" / "1"), size(base) if base.exists() else 0


def measure(name: str) -> list[tuple[Any, ...]]:
    """The rows of a network."""
    state = trained(name)
    assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
    weights = sum(leaf.size for leaf in state.params.values())
    full, _ = save(state)
    optimizer = optimizers.adjustable("amsgrad_torch", 1e-3)
    rows = []
    for frozen in FROZEN:
        freezing = Freezing(pb_jax.random(frozen), 1, compact=True)
        mask = jax.jit(freezing.select)(state.opt_state, state.params, state.params).mask
        opt_state, _ = freezing.compacted(
            optimizer, state.opt_state._replace(mask=mask), state.params
        )
        delta, base = save(state._replace(opt_state=opt_state))
        rows.append((name, weights, frozen, full, delta, base))
    return rows


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(models.NAMES, "network")
    parser.add_argument("--models", type=networks, default=",".join(models.NAMES))
    arguments = parser.parse_args()

    rows = Rows(arguments.json, COLUMNS, arguments.models)
    print(
        f"{'network':12} {'frozen':>7} {'full MB':>9} {'delta MB':>9} {'ratio':>6} {'base MB':>8}"
    )
    for name in arguments.models:
        for row in measure(name):
            rows.add(row)
            _, _, frozen, full, delta, base = row
            print(
                f"{name:12} {frozen:7.0%} {full / 1e6:9.2f} {delta / 1e6:9.2f} {delta / full:6.3f} "
                f"{base / 1e6:8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

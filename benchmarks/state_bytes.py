"""Bytes of optimizer state, compact against dense, by the share of frozen weights.

    python -m benchmarks.state_bytes [--models lenet5,vgg19] [--optimizers adam] [--json FILE]

Counted from the arrays, indices and packed mask included. The mask is random over all weights.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import models
import pb_jax
from benchmarks import command
from benchmarks.rows import Rows
from pb_jax.program import run
from pb_jax.training import optimizers

FROZEN = (0.0, 0.5, 0.8, 0.95)
COLUMNS = ("network", "weights", "optimizer", "frozen", "dense", "compact", "mask", "indices")


def parameters(name: str) -> Any:
    """Zeros in the shapes of the network's parameters."""
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def count(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(params: Any, name: str, frozen: float) -> list[Any]:
    """Bytes of the dense state, of the compact one, and of mask and indices in it."""
    inner = optimizers.adjustable(name, 1e-3, momentum=0.9 if name == "sgd" else None)
    dense = inner.init(params)
    mask = pb_jax.random(frozen)(params, key=jax.random.key(0)).mask
    state = pb_jax.compact_state(inner, dense, mask, params)
    share = float(pb_jax.frozen_fraction(mask))
    return [name, share, count(dense), count(state), count(state.mask), count(state.indices)]


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(models.NAMES, "network")
    parser.add_argument("--models", type=networks, default=",".join(models.NAMES))
    kinds = command.names(optimizers.NAMES, "optimizer")
    parser.add_argument("--optimizers", type=kinds, default="amsgrad_torch,adam,sgd")
    arguments = parser.parse_args()

    rows = Rows(arguments.json, COLUMNS, arguments.models)
    print(
        f"{'network':12} {'weights':>11} {'optimizer':14} {'frozen':>7} {'MB':>8} {'of dense':>9}"
    )
    for network in arguments.models:
        params = parameters(network)
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        for name in arguments.optimizers:
            for frozen in FROZEN:
                row = [network, weights, *measure(params, name, frozen)]
                rows.add(row)
                label = f"{network:12} {weights:11,} {name:14} {row[3]:7.1%}"
                print(f"{label} {row[5] / 1e6:8.2f} {row[5] / row[4]:9.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

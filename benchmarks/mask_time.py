"""How long it takes to make a mask, for each rule and network, beside one read of the gradients.

    python -m benchmarks.mask_time [--models lenet5,vgg19] [--rules kde_otsu,quantile] [--json FILE]

The gradients are lognormal (sigma 2: a tail as heavy as real ones have), in the networks' own
leaves. "read" is a single pass over them, the sum of all magnitudes.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import models
import pb_jax
from benchmarks import command
from benchmarks.rows import Rows
from pb_jax.program import run

COLUMNS = ("network", "weights", "leaves", "rule", "compile_s", "run_s")
RULES: dict[str, pb_jax.Rule] = {
    "kde_otsu": pb_jax.kde_otsu(),
    "kde_otsu by leaf": pb_jax.kde_otsu(scope="leaf"),
    "quantile": pb_jax.quantile(0.8),
    "mean_threshold": pb_jax.mean_threshold(),
    "random": pb_jax.random(0.8),
}
READ = "read"


def gradients(name: str) -> list[jax.Array]:
    """Lognormal arrays in the shapes of the network's parameters."""
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jnp.exp(2 * jax.random.normal(key, s) - 7) for key, s in zip(keys, shapes, strict=True)]


def work(rule: str) -> Callable[[list[jax.Array]], Any]:
    """What is timed: a mask by the rule, or the sum of all magnitudes."""
    if rule == READ:
        return lambda grads: sum(jnp.sum(jnp.abs(leaf)) for leaf in grads)
    return lambda grads: RULES[rule](grads).mask


def measure(function: Callable[..., Any], grads: Any, repeats: int) -> tuple[float, float]:
    """Seconds to compile, and the median of `repeats` runs."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(grads).compile()
    compilation = time.perf_counter() - start
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(grads))
        times.append(time.perf_counter() - start)
    return compilation, statistics.median(times[1:])


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(models.NAMES, "network")
    parser.add_argument("--models", type=networks, default=",".join(models.NAMES))
    known = (*RULES, READ)
    parser.add_argument("--rules", type=command.names(known, "rule"), default=",".join(known))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rows = Rows(arguments.json, COLUMNS, arguments.models)
    print(
        f"{'network':12} {'weights':>11} {'leaves':>7} {'rule':17} {'compile s':>9} {'run ms':>8}"
    )
    for name in arguments.models:
        grads = gradients(name)
        weights = sum(leaf.size for leaf in grads)
        for rule in arguments.rules:
            compilation, seconds = measure(work(rule), grads, arguments.repeats)
            rows.add([name, weights, len(grads), rule, compilation, seconds])
            label = f"{name:12} {weights:11,} {len(grads):7} {rule:17}"
            print(f"{label} {compilation:9.1f} {seconds * 1e3:8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

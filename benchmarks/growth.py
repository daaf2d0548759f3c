"""How an update's time, a mask's time and the state's bytes grow with weights and frozen share.

    python -m benchmarks.growth [--sizes 100000,100000000] [--frozen 0,0.8] [--json FILE]

AMSGrad on a tree of 16 equal leaves with random gradients, parameters and state donated, each
compiled by itself, medians, the ways in turns: "full" is AMSGrad alone, "dense"
`freeze_elements`, "compact" `apply_compact`. The mask is random over all weights. "mask" is
`kde_otsu` on lognormal gradients. The bytes are those of the optimizer's state, mask and indices
included.
"""

import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pb_jax
from benchmarks import command
from benchmarks.rows import Rows
from pb_jax.program import run

LEAVES = 16
COLUMNS = ("weights", "frozen", "way", "seconds", "state_bytes")


class Update:
    """One way to update all weights, compiled, with its state."""

    def __init__(self, way: str, grads: Any, mask: Any) -> None:
        inner = optax.amsgrad(1e-3)
        params = jax.tree.map(jnp.zeros_like, grads)
        if way == "compact":
            tx = pb_jax.compact(inner, mask)
        elif way == "dense":
            tx = pb_jax.freeze_elements(inner, mask)
        else:
            tx = inner

        def step(params: Any, state: Any, grads: Any) -> Any:
            if way == "compact":
                return pb_jax.apply_compact(inner, grads, state, params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._held = params, tx.init(params)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._held[1]))
        self._grads = grads
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> None:
        """Make one update, and wait for it."""
        self._held = jax.block_until_ready(self._step(*self._held, self._grads))


def gradients(weights: int) -> list[jax.Array]:
    """Lognormal, in equal leaves."""
    keys = jax.random.split(jax.random.key(0), LEAVES)
    return [jnp.exp(2 * jax.random.normal(key, (weights // LEAVES,)) - 7) for key in keys]


def medians(ways: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of each, in turns; the first turn compiles."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            if turn:
                times[way].append(time.perf_counter() - start)
    return {way: statistics.median(taken) for way, taken in times.items()}


def measure(weights: int, shares: list[float], repeats: int) -> list[tuple[Any, ...]]:
    """The rows of one number of weights."""
    grads = gradients(weights)
    rule = jax.jit(lambda grads: pb_jax.kde_otsu()(grads).mask)
    seconds = medians({"mask": lambda: jax.block_until_ready(rule(grads))}, repeats)["mask"]
    rows: list[tuple[Any, ...]] = [(weights, None, "mask", seconds, None)]
    for frozen in shares:
        mask = pb_jax.random(frozen)(grads, key=jax.random.key(1)).mask
        ways = {way: Update(way, grads, mask) for way in ("full", "dense", "compact")}
        taken = medians(ways, repeats)
        rows += [(weights, frozen, way, taken[way], ways[way].state_bytes) for way in ways]
    return rows


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    sizes = "100000,1000000,10000000,100000000"
    parser.add_argument("--sizes", type=command.numbers, default=sizes)
    parser.add_argument("--frozen", type=command.numbers, default="0,0.5,0.8,0.95")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rows = Rows(arguments.json, COLUMNS)
    print(f"{'weights':>11} {'frozen':>7} {'way':8} {'ms':>9} {'of full':>8} {'state MB':>9}")
    for size in map(int, arguments.sizes):
        full = None
        for row in measure(size, arguments.frozen, arguments.repeats):
            weights, frozen, way, seconds, state = row
            rows.add(row)
            full = row if way == "full" else full
            share = "" if frozen is None else f"{frozen:.0%}"
            label = f"{weights:11,} {share:>7} {way:8} {seconds * 1e3:9.2f}"
            if full is None or state is None:
                print(label, flush=True)
            else:
                print(f"{label} {seconds / full[3]:8.2f} {state / 1e6:9.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

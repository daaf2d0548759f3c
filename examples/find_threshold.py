"""Find a threshold and draw it: `python -m examples.find_threshold [--output threshold.png]`.

LeNet-5 on scikit-learn's digits for two epochs; then the gradients of one batch, their density, the
region that is split, and the threshold. It made the figure of docs/method.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import models
import pb_jax
from pb_jax.data import Dataset, load, normalize

RATE, BATCH, EPOCHS = 1e-3, 50, 2


def gradients(data: Dataset) -> Any:
    """Those of the first batch of the third epoch."""
    graph, params = nnx.split(models.create("lenet5", data.num_classes, rngs=nnx.Rngs(0)))
    tx = optax.amsgrad(RATE)

    @jax.jit
    def look(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            scores = nnx.merge(graph, params)(normalize(images, data.mean, data.std))
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        return jax.grad(loss)(params)

    @jax.jit
    def follow(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, steps = tx.init(params), len(data.train.labels) // BATCH
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for chosen in rng.permutation(len(data.train.labels))[: steps * BATCH].reshape(
            steps, BATCH
        ):
            grads = look(params, data.train.images[chosen], data.train.labels[chosen])
            params, state = follow(params, state, grads)
    chosen = rng.permutation(len(data.train.labels))[:BATCH]
    return look(params, data.train.images[chosen], data.train.labels[chosen])


def draw(grads: Any, estimate: pb_jax.ThresholdEstimate) -> Figure:
    """The density of x, and the sub-ranges of its region, on either side of the threshold."""
    found = jax.device_get(estimate)
    x = np.concatenate([np.abs(g).ravel() / RATE for g in jax.tree.leaves(jax.device_get(grads))])
    frozen, t, (low, high) = (x <= found.threshold).mean(), found.threshold, found.region
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    figure.suptitle(
        f"{x.size:,} gradients, {(x == 0).mean():.1%} of them 0: {frozen:.1%} frozen at t = {t:.3g}"
    )
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes in (upper, lower):
        axes.axvspan(low, high, color="#f7dfa5", alpha=0.6, linewidth=0, label="region")
        axes.axvline(t, color="black", linestyle="--", label="threshold t")
    upper.plot(found.grid, found.density, color="#0072b2", label="kernel density f")
    below = found.grid <= t
    upper.fill_between(
        found.grid[below], found.density[below], color="#56b4e9", alpha=0.6, label="frozen"
    )
    upper.set(ylabel="density", ylim=(0, None), xlim=(0, found.grid[-1]))
    means, shares = found.subrange_means, 100 * found.subrange_shares
    for side, colour, label in (
        (means <= t, "#0072b2", "frozen"),
        (means > t, "#d55e00", "trains"),
    ):
        lower.semilogy(means[side], shares[side], ".", color=colour, label=label)
    lower.set(ylabel="share of a sub-range (%)", xlabel="x = |gradient| / learning rate")
    upper.legend()
    lower.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("threshold.png"), help="a PNG file")
    output = parser.parse_args(arguments).output
    if not output.parent.is_dir():  # said before the training, not after it
        print(f"error: there is no folder {output.parent}", file=sys.stderr)
        return 2
    grads = gradients(load("digits"))
    estimate = pb_jax.estimate_threshold(grads, learning_rate=RATE)
    print(f"region [{estimate.region[0]:.3g}, {estimate.region[1]:.3g}]")
    print(f"bandwidth {estimate.bandwidth:.3g}")
    print(f"threshold {estimate.threshold:.3g}")
    try:
        draw(grads, estimate).savefig(output, dpi=110, format="png")
    except OSError as error:
        print(f"error: cannot write {output}: {error.strerror}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

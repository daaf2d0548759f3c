"""Times one training step on CPU: PyTorch, JAX with its stock convolution, and these networks.

    python -m benchmarks.step_time [--models lenet5,vgg19] [--batch 100] [--repeats 5] [--json FILE]

All three make the same step from the same parameters: forward, backward, running statistics and
AMSGrad. PyTorch runs as in the paper's appendix, eagerly, in the channels-last layout, in a process
of its own. The steps take turns, so that what disturbs the machine disturbs all of them: medians
of their times, and of each turn's ratios. Turns in which a virtual machine's cores were farther
from each other than at best (`benchmarks.cores`) stand apart.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import models

models.reuse_host_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks.rows import machine  # noqa: E402
from benchmarks.torch_steps import Step, TorchStep, batch, ratio, timed, turns  # noqa: E402
from pb_jax.errors import UserError  # noqa: E402
from pb_jax.files import write_json  # noqa: E402
from pb_jax.training.optimizers import amsgrad_torch  # noqa: E402

try:
    import torch

    from benchmarks.torch_models import NETWORKS
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit("step_time compares with PyTorch: pip install -e '.[bench]'")


@contextlib.contextmanager
def stock_convolution() -> Iterator[None]:
    """While it lasts, networks are built with `lax.conv_general_dilated` and no barriers."""
    with (
        mock.patch("models.layers.convolution", jax.lax.conv_general_dilated),
        mock.patch("models.convolution._materialised", lambda x: x),
    ):
        yield


def jax_step(
    name: str, weights: Any, images: np.ndarray, labels: np.ndarray, options: dict[str, str | bool]
) -> tuple[Step, float]:
    """The compiled step, with donated buffers, and the seconds it took to trace and compile."""
    model = models.create(name, rngs=nnx.Rngs(0))
    models.load_torch(model, weights)
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    # Flat dicts of arrays: cheap to hand over at every step.
    flat = [{path: v[...] for path, v in nnx.to_flat_state(state)} for state in states]
    optimizer = amsgrad_torch(1e-3)
    x, y = jnp.asarray(images), jnp.asarray(labels, jnp.int32)

    def update(params: Any, running: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            both = (nnx.from_flat_state(list(part.items())) for part in (params, running))
            trained = nnx.merge(graph, *both)
            value = optax.softmax_cross_entropy_with_integer_labels(trained(x), y).mean()
            after = nnx.to_flat_state(nnx.state(trained, nnx.BatchStat))
            return value, {path: v[...] for path, v in after}

        (value, running), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), running, opt_state, value

    state = (*flat, optimizer.init(flat[0]))
    start = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=(0, 1, 2), compiler_options=options or None)
    compiled.lower(*state, x, y).compile()
    seconds = time.perf_counter() - start

    def step() -> float:
        nonlocal state
        *state, value = compiled(*state, x, y)
        jax.block_until_ready(state)
        return float(value)

    return step, seconds


def measure(name: str, size: int, repeats: int, stock: bool) -> dict[str, Any]:
    """Median seconds of a step of each kind, and how they compare."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    weights = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    images, labels = batch(name, size)
    pytorch = TorchStep(name, size)
    compilation: dict[str, float] = {}
    compiled: dict[str, Step] = {}
    ours = models.compiler_options("cpu")
    compiled["pb_jax"], compilation["pb_jax"] = jax_step(name, weights, images, labels, ours)
    if stock:
        with stock_convolution():
            compiled["stock"], compilation["stock"] = jax_step(name, weights, images, labels, {})

    # The first steps fetch memory and choose algorithms; all must begin with the same loss.
    pytorch(1)
    first = {"pytorch": pytorch.loss, **{kind: step() for kind, step in compiled.items()}}
    if not np.allclose(list(first.values()), first["pytorch"], rtol=1e-4):
        raise AssertionError(f"{name}: the steps compute different losses: {first}")
    runs: dict[str, Callable[[int], list[float]]] = {"pytorch": pytorch}
    runs |= {kind: lambda n, step=step: timed(step, n)[0] for kind, step in compiled.items()}
    near, far = turns(runs, repeats, 100 if name == "lenet5" else 1)
    pytorch.close()
    return {"batch": size, "compile_seconds": compilation, **compared(near), "far": compared(far)}


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of some turns."""
    if not times["pytorch"]:
        return {"turns": 0}
    return {
        "turns": len(times["pytorch"]),
        "seconds": {kind: statistics.median(taken) for kind, taken in times.items()},
        "ratio_to_pytorch": {kind: ratio(times[kind], times["pytorch"]) for kind in times},
    }


def main() -> int:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description="One training step: PyTorch, stock JAX, pb_jax.")
    parser.add_argument("--models", default=",".join(models.NAMES), help="names, comma-separated")
    parser.add_argument("--batch", type=int, default=100, help="images a step (100)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="turns; 100 steps each of LeNet-5, one of the others (5)",
    )
    parser.add_argument("--no-stock", action="store_true", help="leave the stock convolution out")
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those there")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if unknown := set(names) - set(models.NAMES):
        known = ", ".join(models.NAMES)
        raise UserError(f"unknown networks: {', '.join(unknown)}; choose of {known}")
    if jax.default_backend() != "cpu":
        raise UserError("step_time measures the CPU: set JAX_PLATFORMS=cpu")
    print(
        f"{'ms a step':14}{'PyTorch':>10}{'stock':>10}{'pb_jax':>10}{'ratio':>8}{'compile s':>11}"
    )
    results = {}
    for name in names:
        result = measure(name, arguments.batch, arguments.repeats, not arguments.no_stock)
        results[name] = result
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
    if arguments.json:
        # One network at a time keeps the machine quiet; results of the others stay.
        if arguments.json.exists():
            results = json.loads(arguments.json.read_text())["results"] | results
        depends = {
            **machine(),
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
        }
        write_json(arguments.json, {"machine": depends, "results": results})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as problem:
        sys.exit(str(problem))

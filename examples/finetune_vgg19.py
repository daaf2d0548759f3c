"""Fine-tune a PyTorch VGG19 with 80 % of its weights frozen and optimizer state for the rest only.

  python -m examples.finetune_vgg19 --weights vgg19.safetensors
  python -m examples.finetune_vgg19 --weights vgg19.safetensors --dataset cifar10 --source DIR

The weights are those of kuangliu/pytorch-cifar's VGG19 by their names there. PyTorch's own files
are pickles, which are not read here; where PyTorch is, this makes the file:

  import torch, safetensors.torch
  state = torch.load("ckpt.pth", map_location="cpu", weights_only=True)["net"]
  safetensors.torch.save_file(state, "vgg19.safetensors")

The gradients of one batch at the loaded weights decide what trains: there is no full training
first, and optimizer state for all weights is never made. The digits need no download; they are set
in 32 x 32 pixels and three equal colours.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import models
import pb_jax
from pb_jax.data import DATASETS, Dataset, load, normalize
from pb_jax.errors import UserError


def fine_tune(
    weights: Path, data: Dataset, *, frozen: float, steps: int, batch_size: int, rate: float
) -> tuple[nnx.Module, Any]:
    """Load, choose what trains, train; returns the network and its mask."""
    model = models.create("vgg19", data.num_classes, rngs=nnx.Rngs(0))
    models.load_torch(model, weights)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.amsgrad(rate)
    rng = np.random.default_rng(0)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, rest, copy=True)
        scores = model(normalize(images, data.mean, data.std))
        value = optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
        return value, nnx.state(model, nnx.Not(nnx.Param))  # running statistics go on moving

    def step(params: Any, rest: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, images, labels)
        params, state = pb_jax.apply_compact(optimizer, grads, state, params)
        return params, rest, state, value

    def batch() -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(0, len(data.train.labels), batch_size)
        return data.train.images[chosen], data.train.labels[chosen]

    options = models.compiler_options(jax.default_backend())  # what makes the step fast on CPU
    look = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)
    grads, _ = look(params, rest, *batch())
    mask = pb_jax.quantile(frozen)(grads).mask
    state = pb_jax.compact(optimizer, mask).init(params)
    dense = jax.eval_shape(optimizer.init, params)
    print(pb_jax.mask_summary(mask))
    print(f"optimizer state: {megabytes(state)}, of all weights {megabytes(dense)}")

    train = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=options)
    for number in range(1, steps + 1):
        params, rest, state, value = train(params, rest, state, *batch())
        print(f"step {number} of {steps}: loss {value:.3f}", flush=True)
    return nnx.merge(graph, params, rest), mask


def in_colour(data: Dataset) -> Dataset:
    """Grey images of 28 x 28 pixels as VGG19 takes them: 32 x 32, three equal channels."""
    if len(data.mean) == 3:
        return data
    images = np.pad(data.train.images, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)
    return data._replace(
        train=data.train._replace(images=images), mean=data.mean * 3, std=data.std * 3
    )


def megabytes(tree: Any) -> str:
    """What the arrays of a tree hold."""
    leaves = jax.tree.leaves(tree)
    return f"{sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves) / 1e6:.1f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help=".safetensors or .npz file")
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="default: digits")
    parser.add_argument("--source", type=Path, help="folder of its original files; else download")
    parser.add_argument("--frozen", type=float, default=0.8, help="share of the weights (0.8)")
    parser.add_argument("--steps", type=int, default=50, help="after the mask (50)")
    parser.add_argument("--batch-size", type=int, default=50, help="images (50)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of AMSGrad (1e-4)")
    options = parser.parse_args(arguments)
    try:
        fine_tune(
            options.weights,
            in_colour(load(options.dataset, source_dir=options.source)),
            frozen=options.frozen,
            steps=options.steps,
            batch_size=options.batch_size,
            rate=options.learning_rate,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Our training steps, compiled, and each of them in a process of its own."""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
import pb_jax
from benchmarks.processes import Step, StepProcess, serve, timed, updates_of_a_step
from benchmarks.torch_steps import batch
from pb_jax.data import Dataset, Split, Vocabulary
from pb_jax.training import (
    Captioning,
    Classification,
    Freezing,
    Pictures,
    optimizers,
)
from pb_jax.training.constants import of_changing, split_constants
from pb_jax.training.step import Steps, Totals, strong
from pb_jax.training.task import Task

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
    """One way to train, compiled, with its state.

    Args:
        name: the network.
        way: see `benchmarks.freeze_step`.
        frozen: the share that a random mask freezes; None: the mask is what `kde_otsu` makes of the
            gradients of the first batch.
        options: more of the compiler's.
    """

    def __init__(
        self,
        name: str,
        way: str,
        frozen: float | None,
        options: Mapping[str, str | bool] | None = None,
    ) -> None:
        task = captioner() if name == "captioner" else classifier(name)
        rate = 5e-4 if name == "captioner" else 1e-3
        optimizer = optimizers.adjustable("adam" if name == "captioner" else "amsgrad_torch", rate)
        rule = pb_jax.kde_otsu() if frozen is None else pb_jax.random(frozen)
        freezing = Freezing(
            pb_jax.by_group(rule, "channel") if way == "channel" else rule,
            task.steps_per_epoch,
            compact=way in ("compact", "channel"),
        )
        steps = Steps(task, optimizer, None if way == "full" else freezing)
        state = strong(steps.initial(task.params, task.model_state))
        order = task.order(0, 1)
        rows = jnp.asarray(order.rows)
        self._data = task.train_data()
        options = {**models.compiler_options(jax.default_backend()), **(options or {})}
        self.frozen = 0.0
        if way != "full":
            assert isinstance(state.opt_state, pb_jax.PartialBackpropState)
            judged = state.params
            if frozen is None:
                look = functools.partial(steps.add_magnitudes, length=order.lengths[0])
                first = jnp.int32(0), jnp.float32(1)
                zeros = jax.tree.map(jnp.zeros_like, state.params)
                judge = jax.jit(look, compiler_options=options)
                judged = judge(zeros, state, self._data, rows, *first)
            select = jax.jit(freezing.select)
            selection = select(state.opt_state, judged, state.params)
            self.frozen = float(pb_jax.frozen_fraction(selection.mask))
            state = state._replace(opt_state=state.opt_state._replace(mask=selection.mask))
            state, _ = steps.compacted(state)
            steps = steps.narrowed(state)
            state = steps.joined(state)
        self.updates = updates_of_a_step()
        # On an accelerator `train.py` makes one program of an epoch, where all batches are alike.
        self._calls = self.updates if name == "captioner" else 1
        if self._calls == self.updates:
            train = functools.partial(steps.train, length=order.lengths[0])
        else:
            train = functools.partial(steps.train_many, count=self.updates)
        changing, constants = split_constants(state)
        train = of_changing(train, constants)
        self._held: Any = changing, Totals.empty()
        self._read = constants.read, rows
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
        return timed(self.one, steps)[0]

    def one(self) -> float:
        """Make one, of `updates` updates; no loss is looked at."""
        for _ in range(self._calls):
            self._held = self.compiled(*self._in_order())
        self._held[1].steps.block_until_ready()  # as the training loop waits
        return float("nan")

    def _in_order(self) -> tuple[Any, ...]:
        (changing, totals), (read, rows) = self._held, self._read
        return changing, read, totals, self._data, rows


def megabytes(tree: Any) -> float:
    """Of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


@contextlib.contextmanager
def stock_convolution() -> Iterator[None]:
    """While it lasts, networks are built with `lax.conv_general_dilated` and no barriers."""
    with (
        mock.patch("models.layers.convolution", jax.lax.conv_general_dilated),
        mock.patch("models.convolution._materialised", lambda x: x),
    ):
        yield


def train_process(name: str, ways: Sequence[str], frozen: float | None) -> StepProcess:
    """`Ours` of each way, to be timed.

    They share the process, and so the memory for what is temporary in a step, as each is done
    before another begins: one way alone may have more luck with its memory than another.
    """
    return StepProcess("benchmarks.jax_steps", step="train", name=name, ways=ways, frozen=frozen)


def same_process(name: str, size: int, stock: bool) -> StepProcess:
    """The very step that `torch_steps.torch_process` makes, to be timed.

    Args:
        name: the network.
        size: images a batch.
        stock: with XLA's own convolution and options.
    """
    return StepProcess("benchmarks.jax_steps", step="same", name=name, size=size, stock=stock)


def made(step: str, **wanted: Any) -> list[tuple[Step, dict[str, Any]]]:
    """The steps of a `train_process` or `same_process`, and what is known of each."""
    if step == "same":
        if not wanted.pop("stock"):
            return [same_step(options=models.compiler_options("cpu"), **wanted)]
        with stock_convolution():
            return [same_step(options={}, **wanted)]
    first, *others = wanted.pop("ways")
    steps = [Ours(way=first, **wanted)]
    # The others share the algorithms that it has chosen on an accelerator, and compile at once.
    with ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else None) as pool:
        steps += pool.map(lambda way: Ours(way=way, **wanted), others)
    known = ("frozen", "compile_s", "state_mb", "step_mb", "updates")
    return [(step.one, {name: getattr(step, name) for name in known}) for step in steps]


def same_step(name: str, size: int, options: dict[str, str | bool]) -> tuple[Step, dict[str, Any]]:
    """The compiled step, with donated buffers, and the seconds it took to trace and compile."""
    import torch

    from benchmarks.torch_models import NETWORKS

    torch.manual_seed(0)
    weights = {key: value.numpy() for key, value in NETWORKS[name]().state_dict().items()}
    model = models.create(name, rngs=nnx.Rngs(0))
    models.load_torch(model, weights)
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    # Flat dicts of arrays: cheap to hand over at every step.
    flat = [{path: v[...] for path, v in nnx.to_flat_state(state)} for state in states]
    optimizer = optimizers.amsgrad_torch(1e-3)
    images, labels = batch(name, size)
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
    jitted = jax.jit(update, donate_argnums=(0, 1, 2), compiler_options=options or None)
    compiled = jitted.lower(*state, x, y).compile()
    seconds = time.perf_counter() - start

    def step() -> float:
        nonlocal state
        *state, value = compiled(*state, x, y)
        jax.block_until_ready(state)
        return float(value)

    return step, {"compile_s": seconds}


if __name__ == "__main__":
    models.reuse_host_memory()
    serve(made)

"""Weight gradients of the output channels that train: from the mask to the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pb_jax
from models.layers import BatchNorm, Network, conv, dense, max_pool
from pb_jax.training import Classification, Freezing, fit, optimizers
from pb_jax.training.compact import trained_channels
from pb_jax.training.step import Steps, Totals
from tests.tiny_training import (
    BATCH,
    CLASSES,
    STEPS,
    assert_same_run,
    tiny_data,
    tiny_schedule,
    tiny_task,
)


class Small(Network):
    """A convolution, batch norm, pooling and two dense layers."""

    def __init__(self, num_classes, *, rngs, dtype, precision):
        computed = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.conv = conv(1, 12, 3, padding=1, use_bias=True, **computed)
        self.norm = BatchNorm(12, rngs=rngs)
        self.middle = dense(108, 10, **computed)
        self.head = dense(10, num_classes, **computed)

    def __call__(self, images):
        x = max_pool(jax.nn.relu(self.norm(self.conv(images))))
        return self.head(jax.nn.relu(self.middle(x.reshape(x.shape[0], -1))))


def small_task():
    model = Small(CLASSES, rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None)
    return Classification(model, tiny_data(), BATCH)


def channel_freezing(granularity="channel"):
    rule = pb_jax.by_group(pb_jax.quantile(0.8), granularity)
    return Freezing(rule, STEPS, start_epoch=2, alpha=1e-2, seed=3, compact=True)


def adamw():
    return optimizers.create("adamw", tiny_schedule(), weight_decay=0.01)


@pytest.fixture(scope="module")
def masked():
    """The steps' functions, and the state behind a mask, dense and compact."""
    task = small_task()
    steps = Steps(task, adamw(), channel_freezing())
    state = steps.initial(task.params, task.model_state)
    rows = jnp.asarray(task.order(0, 1).rows)
    state, *_ = jax.jit(steps.mask)(state, Totals.empty(), task.train_data(), rows)
    return task, steps, state, steps.compacted(state)[0]


def test_channels_are_those_of_which_anything_trains(masked):
    *_, dense_state, state = masked
    found = trained_channels(state.opt_state)
    assert found
    for name, channels in found.items():
        mask = np.asarray(dense_state.opt_state.mask[name])
        wanted = np.flatnonzero(mask.any(tuple(range(mask.ndim - 1))))
        np.testing.assert_array_equal(channels, wanted)
        assert channels.dtype == np.int32
        assert 0 < channels.size < mask.shape[-1]
    assert all(dense_state.opt_state.mask[name].ndim > 1 for name in found)


def test_updates_are_the_same(masked):
    task, steps, dense_state, state = masked
    narrowed = steps.narrowed(state)
    assert steps.narrowed(dense_state) is steps
    data, rows = task.train_data(), jnp.asarray(task.order(0, 1).rows)
    arguments = (state, Totals.empty(), data, rows)
    programs = [jax.jit(s.train).lower(*arguments).compile() for s in (steps, narrowed)]
    plain, narrow = [program.cost_analysis()["flops"] for program in programs]
    assert narrow < plain
    results = []
    for program in programs:
        now, totals = state, Totals.empty()
        for _ in range(3):
            now, totals = program(now, totals, data, rows)
        results.append((now, totals))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    for name, mask in dense_state.opt_state.mask.items():
        frozen = ~np.asarray(mask)
        moved, still = results[1][0].params[name], dense_state.params[name]
        np.testing.assert_array_equal(moved[frozen], still[frozen])


def test_a_model_that_cannot_be_told_is_left_as_it_is():
    task = tiny_task()
    assert task.with_channels({"stem.kernel": np.array([0], np.int32)}) is task


def run(workdir, epochs):
    workdir.mkdir(exist_ok=True)
    task = small_task()
    told = []
    task.with_channels = lambda trained: (
        told.append(trained),
        Classification.with_channels(task, trained),
    )[1]
    with (workdir / "printed.txt").open("a") as stream:
        fit(
            task,
            adamw(),
            workdir,
            epochs=epochs,
            learning_rate=tiny_schedule(),
            freezing=channel_freezing(),
            seed=3,
            stream=stream,
        )
    return told


@pytest.mark.slow
def test_a_resumed_run_is_told_the_same_and_ends_with_the_same_bits(tmp_path):
    (once,) = run(tmp_path / "whole", 4)
    (first,) = run(tmp_path / "resumed", 3)
    (again,) = run(tmp_path / "resumed", 4)
    assert once.keys() == first.keys() == again.keys() != set()
    for name, channels in once.items():
        np.testing.assert_array_equal(channels, first[name])
        np.testing.assert_array_equal(channels, again[name])
    assert_same_run(tmp_path / "whole", tmp_path / "resumed", 4)

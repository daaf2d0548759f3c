"""Less traffic: with a compact state devices exchange the gradients of what trains only."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
import pb_jax
from models.layers import BatchNorm, Network, conv, dense, global_avg_pool, max_pool
from pb_jax.training import Classification, Freezing, Placement
from pb_jax.training.step import Steps, Totals, strong
from tests.programs import reduced_bytes
from tests.tiny_training import tiny_task

DEVICES = 8
QUANTILE = pb_jax.quantile(0.8)


class Normalised(Network):
    """Small, with the batch norms that make a part of a batch differ from the whole."""

    def __init__(self, num_classes, *, rngs, dtype=jnp.float32, precision=None):
        options = {"rngs": rngs, "dtype": dtype, "precision": precision}
        self.first = conv(3, 16, 3, padding=1, use_bias=True, **options)
        self.norm = BatchNorm(16, rngs=rngs)
        self.second = conv(16, 32, 3, padding=1, **options)
        self.other = BatchNorm(32, rngs=rngs)
        self.last = dense(32, num_classes, **options)

    def __call__(self, images):
        x = max_pool(jax.nn.relu(self.norm(self.first(images))))
        return self.last(global_avg_pool(jax.nn.relu(self.other(self.second(x)))))


def task_of(network):
    rng, part = np.random.default_rng(0), types.SimpleNamespace
    model, shape = network()
    # Of other brightness on every device: statistics of a part are far from those of the whole.
    images = rng.integers(0, 90, (64, *shape)) + 20 * (np.arange(64) % 8)[:, None, None, None]
    split = part(images=images.astype(np.uint8), labels=rng.integers(0, 10, 64))
    channels = shape[-1]
    data = part(train=split, test=split, mean=(0.4,) * channels, std=(0.2,) * channels)
    return Classification(model, data, 32)


def trained(network, placement, compact, rule=QUANTILE):
    """Bytes reduced over the devices in a step under the rule's mask, and what four steps make."""
    task = task_of(network)
    freezing = Freezing(rule, task.steps_per_epoch, compact=compact)
    steps = Steps(task, optax.sgd(0.1, momentum=0.9), freezing, placement)
    state, totals = strong(steps.initial(task.params, task.model_state)), Totals.empty()
    rows = np.arange(64).reshape(8, 8).T.reshape(2, 32).astype(np.int32)
    data, order = task.train_data(), jnp.asarray(rows)
    if placement is not None:
        state, totals = placement.place((state, totals))
        data, order = placement.batches(rows, lambda part: task.read(part, 0)), None
    state, totals, *_ = jax.jit(steps.mask)(state, totals, data, order)
    if compact:
        state, _ = steps.compacted(state if placement is None else placement.local(state))
        steps = steps.narrowed(state)
    if placement is not None:
        state, totals = placement.place(jax.device_get((state, totals)))
    step = (
        jax.jit(steps.train, compiler_options=models.compiler_options("cpu"))
        .lower(state, totals, data, order)
        .compile()
    )
    for _ in range(3):
        state, totals = step(state, totals, data, order)
    return reduced_bytes(step), jax.device_get((state.params, state.model_state, totals))


def lenet5():
    return models.create("lenet5", rngs=nnx.Rngs(0)), (28, 28, 1)


def normalised():
    return Normalised(10, rngs=nnx.Rngs(0)), (8, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("network", [normalised, lenet5])
def test_devices_exchange_what_trains_and_make_the_same_updates(network):
    _, alone = trained(network, None, compact=True)
    full, _ = trained(network, Placement(DEVICES), compact=False)
    small, found = trained(network, Placement(DEVICES), compact=True)
    weights = sum(leaf.size for leaf in jax.tree.leaves(alone[0]))
    print(f"{network.__name__}: {weights:,} weights, {full:,} bytes in full, {small:,} of them")
    assert full >= 4 * weights, "the count misses something"
    assert small <= 0.25 * full
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [0, 1])
def test_layers_of_which_little_or_nothing_trains(channels):
    def rule(grads, params=None, *, key=None):
        del params, key
        # The bias lies before a batch norm: its gradients are rounding, at times exactly zero.
        frozen = ("first.bias", "second.kernel")
        mask = {name: jnp.full(g.shape, name not in frozen) for name, g in grads.items()}
        mask["second.kernel"] = mask["second.kernel"].at[..., :channels].set(True)
        return pb_jax.Selection(mask, jnp.nan)

    _, alone = trained(normalised, None, True, rule)
    _, found = trained(normalised, Placement(2), True, rule)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_what_has_to_see_the_whole_batch_says_so():
    assert tiny_task().in_parts(("data",)) is None, "its dropout draws for a whole batch"
    assert task_of(normalised).in_parts(("data",)) is not None


def test_batch_norm_over_devices_has_the_gradients_of_the_whole_batch():
    placement = Placement(4, 2)
    axes = placement.mesh.axis_names
    x = jax.random.normal(jax.random.key(0), (16, 3)) * jnp.arange(1.0, 17.0)[:, None]
    target = jax.random.normal(jax.random.key(1), (16, 3))

    def loss(scale, x, target, axes):
        norm = BatchNorm(3, rngs=nnx.Rngs(0))
        norm.axes = axes
        norm.scale.set_value(scale)
        return jnp.mean((norm(x) - target) ** 2), norm.var[...]

    def part(scale, batch):
        own = jax.lax.pcast(scale, axes, to="varying")
        (value, var), gradient = jax.value_and_grad(loss, has_aux=True)(own, *batch, axes)
        return jax.lax.pmean((value, gradient), axes), var

    scale = jnp.array([1.0, 0.5, 2.0])
    (value, gradient), var = jax.jit(placement.over_devices(part))(scale, (x, target))
    (wanted, wanted_var), wanted_gradient = jax.value_and_grad(loss, has_aux=True)(
        scale, x, target, ()
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(var, wanted_var, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import models
import pb_jax
from pb_jax.training import Classification, Freezing, optimizers
from pb_jax.training.classification import Split, normalised
from pb_jax.training.step import Steps, Totals, frozen_counts, zero_share
from pb_jax.training.task import EvalTotals
from tests.tiny_training import tiny_data, tiny_freezing, tiny_steps


def tiny_split():
    data = tiny_data().train
    return Split(jnp.asarray(data.images), jnp.asarray(data.labels))


def test_normalised_as_numpy_does_it():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3)).astype(np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    found = normalised(jnp.asarray(images), mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_zero_share_counts_zeros_and_what_is_masked():
    grads = {"a": jnp.array([0.0, 1.0, 2.0]), "b": jnp.array([[0.0], [5.0]])}
    assert zero_share(grads, None, 5) == pytest.approx(2 / 5)
    mask = {"a": jnp.array([True, False, True]), "b": jnp.array([[False], [True]])}
    assert zero_share(grads, mask, 5) == pytest.approx(3 / 5)


def test_totals_are_sums_and_the_batch_goes_with_the_step():
    steps, state = tiny_steps()
    data, order = tiny_split(), jnp.arange(80, dtype=jnp.int32).reshape(8, 10)
    step = jax.jit(steps.train)
    totals, losses = Totals.empty(), []
    for _ in range(3):
        state, totals = step(state, totals, data, order)
        losses.append(float(totals.loss) - sum(losses))
    assert int(state.step) == int(totals.steps) == 3
    assert 0 <= int(totals.correct) <= int(totals.counted) == 30
    other = Split(data.images.at[30:].set(0), data.labels)  # batches that have not been used
    again, repeated = tiny_steps()[1], Totals.empty()
    for _ in range(3):
        again, repeated = step(again, repeated, other, order)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), totals, repeated))


def test_the_first_step_that_is_not_finite_is_remembered():
    steps, state = tiny_steps(optimizer=optax.sgd(1e38))
    data, order = tiny_split(), jnp.arange(80, dtype=jnp.int32).reshape(8, 10)
    step, totals, finite = jax.jit(steps.train), Totals.empty(), []
    for _ in range(6):
        before = totals.loss
        state, totals = step(state, totals, data, order)
        finite.append(bool(jnp.isfinite(totals.loss - before)))
    assert not all(finite)
    assert int(totals.bad_step) == finite.index(False) + 1


def test_evaluation_leaves_out_what_fills_a_batch_up():
    steps, state = tiny_steps()
    data = tiny_split()
    nothing = EvalTotals.empty()
    one = steps.evaluate(state.params, state.model_state, nothing, data, jnp.array([4, 7, -1, -1]))
    two = steps.evaluate(state.params, state.model_state, nothing, data, jnp.array([4, 7]))
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-6)
    assert int(one.correct) == int(two.correct)
    assert int(one.counted) == int(two.counted) == 2


def test_the_ordinary_step_has_no_branch():
    """Nor anything of the rule: it costs nothing while no mask is due."""
    freezing = tiny_freezing(rule=pb_jax.kde_otsu(), refresh_epochs=2, stop_epoch=9)
    steps, state = tiny_steps(freezing)
    arguments = (state, Totals.empty(), tiny_split(), jnp.zeros((8, 10), jnp.int32))
    ordinary = str(jax.make_jaxpr(steps.train)(*arguments))
    assert "cond[" not in ordinary
    assert "sort[" not in ordinary
    assert len(ordinary) < len(str(jax.make_jaxpr(steps.mask)(*arguments))) / 2


def test_nothing_is_frozen_without_a_mask():
    assert frozen_counts(optax.sgd(0.1).init({"w": jnp.ones(3)})).shape == (0,)
    _, state = tiny_steps(tiny_freezing())
    assert int(frozen_counts(state.opt_state).sum()) == 0


PLATFORMS = ("cpu", "cuda", "tpu")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["lenet5", *(pytest.param(n, marks=SLOW) for n in models.NAMES if n != "lenet5")]
)
def test_steps_lower_for_every_platform(name):
    """Without such a device: the training and mask steps, the scanned epoch, and evaluation."""
    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    channels = shape[-1]
    part = types.SimpleNamespace(
        images=np.zeros((100, *shape), np.uint8), labels=np.zeros(100, np.int32)
    )
    images = types.SimpleNamespace(
        train=part, test=part, mean=(0.5,) * channels, std=(0.3,) * channels
    )
    task = Classification(models.create(name, rngs=nnx.Rngs(0)), images, batch_size=10)
    freezing = Freezing(pb_jax.kde_otsu(learning_rate=1e-3), 10, alpha=1e-3)
    optimizer = optimizers.create("amsgrad_torch", optimizers.piecewise(1e-3, (40,), 0.1, 10))
    steps = Steps(task, optimizer, freezing)
    state = jax.eval_shape(steps.initial, task.params, task.model_state)
    totals = jax.eval_shape(Totals.empty)
    data = Split(
        jax.ShapeDtypeStruct((100, *shape), jnp.uint8), jax.ShapeDtypeStruct((100,), jnp.int32)
    )
    order = jax.ShapeDtypeStruct((10, 10), jnp.int32)
    evaluated = (state.params, state.model_state, jax.eval_shape(EvalTotals.empty), data)
    many = functools.partial(steps.train_many, count=9)
    calls = [
        (steps.train, (state, totals, data, order)),
        (many, (state, totals, data, order)),
        (steps.mask, (state, totals, data, order)),
        (steps.mask, (state, totals, data, order, state.params)),
        (steps.evaluate, (*evaluated, jax.ShapeDtypeStruct((10,), jnp.int32))),
        (steps.evaluate_many, (*evaluated, order)),
    ]
    for function, arguments in calls:
        lowered = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        assert lowered.platforms == PLATFORMS
        assert lowered.mlir_module()

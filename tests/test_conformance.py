"""What optax's contrib/_common_test.py asks of every transformation, asked of `partial_backprop`.

Every rule, in both modes, around every optimizer; one case is fast.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pb_jax
from tests.test_rules import RULES
from tests.test_sharding import GROUPED

RULES = {**RULES, **GROUPED, "fixed_threshold": pb_jax.fixed_threshold(3.0)}
STEPS, START = 400, 3
# Each with the rate from which it goes down to 0, so that those that go by signs come to rest.
OPTIMIZERS = {
    "sgd": (optax.sgd, 0.05),
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.02),
    "adam": (optax.adam, 0.2),
    "adamw": (lambda rate: optax.adamw(rate, weight_decay=1e-5), 0.2),
    "amsgrad": (optax.amsgrad, 0.5),
    "adamax": (optax.adamax, 0.4),
    "adabelief": (optax.adabelief, 0.2),
    "adagrad": (optax.adagrad, 2.0),
    "adafactor": (lambda rate: optax.adafactor(rate, multiply_by_parameter_scale=False), 0.2),
    "lamb": (optax.lamb, 0.1),
    "lion": (optax.lion, 0.2),
    "novograd": (optax.novograd, 0.2),
    "radam": (optax.radam, 0.2),
    "rmsprop": (lambda rate: optax.rmsprop(rate, momentum=0.9), 0.02),
    "yogi": (optax.yogi, 0.2),
    "clipped": (lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)), 0.2),
}
FAST = [("quantile", "updates", "adafactor")]
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(RULES, ("updates", "gradients"), OPTIMIZERS)
]
every_case = pytest.mark.parametrize(("rule", "mode", "optimizer"), CASES)


def transformation(rule, mode, optimizer, rate=None):
    make, first = OPTIMIZERS[optimizer]
    rate = optax.linear_schedule(first, 0.0, STEPS) if rate is None else rate
    return pb_jax.partial_backprop(make(rate), RULES[rule], start_step=START, freeze=mode, seed=4)


def problem(dtype=jnp.float32):
    """A parabola over two leaves, as in optax: 1D and 2D."""
    params = {
        "one": jnp.array([-1.0, 5.0, 1.0, 0.0], dtype),
        "two": jnp.array([[0.5, -3.0, 2.0], [4.0, -1.0, 0.0]], dtype),
    }
    target = {
        "one": jnp.array([1.0, -1.0, 1.5, 2.0], dtype),
        "two": jnp.array([[3.0, -2.0, -1.0], [1.0, 4.0, 0.5]], dtype),
    }

    def loss(params):
        parts = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return sum(jax.tree.leaves(parts))

    return params, target, loss


@every_case
def test_trains_what_it_may_with_arguments_it_does_not_know(rule, mode, optimizer):
    params, target, loss = problem()
    tx = transformation(rule, mode, optimizer)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, nobody_expects_this=1)
        return optax.apply_updates(params, updates), state

    state, before = tx.init(params), params
    state = optax.tree.map_params(tx, lambda leaf: leaf, state)
    for i in range(STEPS):
        if i == START:
            before = params
        params, state = step(params, state)
    assert step._cache_size() == 1, "compiled again"
    for trains, start, end, goal in zip(
        *map(jax.tree.leaves, (state.mask, before, params, target)), strict=True
    ):
        trains, start, end, goal = map(np.asarray, (trains, start, end, goal))
        np.testing.assert_allclose(end[trains], goal[trains], atol=0.05)
        if mode == "updates":
            np.testing.assert_array_equal(end[~trains], start[~trains])
    if rule != "none":
        assert pb_jax.frozen_fraction(state.mask) > 0


@every_case
def test_under_inject_hyperparams(rule, mode, optimizer):
    params, _, loss = problem()
    rate = OPTIMIZERS[optimizer][1]
    plain = transformation(rule, mode, optimizer, rate)
    injected = optax.inject_hyperparams(
        lambda rate: transformation(rule, mode, optimizer, rate), ()
    )(rate=rate)

    @jax.jit
    def both(params, state, other):
        grads = jax.grad(loss)(params)
        updates, state = plain.update(grads, state, params)
        other_updates, other = injected.update(grads, other, params)
        return updates, other_updates, state, other

    states = plain.init(params), injected.init(params)
    for _ in range(START + 2):
        updates, others, *states = both(params, *states)
        for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(others), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    one, other = states[0], states[1].inner_state
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@every_case
def test_types_stay_as_they_are(rule, mode, optimizer):
    """Of updates and of state, alone and under gradient accumulation: traced, not run."""
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            params, _, loss = problem(dtype)
            alone = transformation(rule, mode, optimizer)
            for tx in (alone, optax.MultiSteps(alone, every_k_schedule=4)):
                state = jax.eval_shape(tx.init, params)
                updates, after = jax.eval_shape(tx.update, jax.grad(loss)(params), state, params)
                for one, other in ((params, updates), (state, after)):
                    assert jax.tree.structure(one) == jax.tree.structure(other)
                    for (path, a), b in zip(
                        jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True
                    ):
                        name = jax.tree_util.keystr(path)
                        assert (a.shape, a.dtype) == (b.shape, b.dtype), name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["updates", "gradients"])
def test_gradient_accumulation(mode, optimizer, dtype):
    params, _, loss = problem(dtype)
    tx = optax.MultiSteps(transformation("quantile", mode, optimizer), every_k_schedule=4)
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for i in range(4):
        updates, state = update(jax.grad(loss)(params), state, params)
        still = all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(updates))
        assert still == (i < 3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["updates", "gradients"])
def test_a_schedule_that_is_constant_is_a_number(mode, optimizer):
    params, _, loss = problem()
    rate = OPTIMIZERS[optimizer][1]
    found = []
    for given in (rate, optax.constant_schedule(rate)):
        tx = transformation("quantile", mode, optimizer, given)
        update, now, state = jax.jit(tx.update), params, tx.init(params)
        for _ in range(10):
            updates, state = update(jax.grad(loss)(now), state, now)
            now = optax.apply_updates(now, updates)
        found.append(now)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pb_jax

OPTIMIZERS = {
    "sgd": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.05, momentum=0.9, nesterov=True)
    ),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, weight_decay_rate=1e-2, min_dim_size_to_factor=4),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)),
}


def problem(dtype=jnp.float32):
    """Parameters, among them zeros of both signs, and gradients that never rest."""
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(9, 7)), dtype),
        "b": jnp.asarray([0.0, -0.0, 1.0, -1.0, 1e-30, 2.0, -0.0], dtype),
        "none": None,
    }

    def gradient(params, step):
        noise = jax.tree.map(
            lambda p: jax.random.normal(jax.random.key(step), p.shape, p.dtype), params
        )
        return jax.tree.map(lambda p, n: 0.1 * p + n, params, noise)

    return params, gradient


def assert_close(one, other):
    """Equal but for the rounding of differently fused programs."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def train(tx, params, gradient, steps, state=None):
    @jax.jit
    def step(params, state, i):
        updates, state = tx.update(gradient(params, i), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    history = []
    for i in range(steps):
        params, state = step(params, state, i)
        history.append(jax.device_get((params, state)))
    assert step._cache_size() == 1, "compiled twice"
    return params, state, history


def bits(tree):
    return [np.asarray(leaf).view(f"u{leaf.dtype.itemsize}") for leaf in jax.tree.leaves(tree)]


def where_frozen(mask, tree):
    return [leaf[~np.asarray(m)] for m, leaf in zip(jax.tree.leaves(mask), bits(tree), strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_keep_every_bit(name, dtype):
    params, gradient = problem(dtype)
    tx = pb_jax.partial_backprop(OPTIMIZERS[name](), rule=pb_jax.quantile(0.7), start_step=5)
    final, state, history = train(tx, params, gradient, 205)
    before = history[4][0]
    assert 0.6 < float(pb_jax.frozen_fraction(state.mask)) < 0.8
    for one, other in zip(
        where_frozen(state.mask, before), where_frozen(state.mask, final), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    trained = [
        np.asarray(a != b)[np.asarray(m)]
        for m, a, b in zip(*map(jax.tree.leaves, (state.mask, before, final)), strict=True)
    ]
    assert np.mean(np.concatenate(trained)) > 0.8, "the others go on training"


def test_full_before_the_start_and_masked_at_it():
    params, gradient = problem()
    rule = pb_jax.quantile(0.5)
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=rule, start_step=3)
    _, _, history = train(tx, params, gradient, 5)
    plain, _, plain_history = train(optax.adam(1e-2), params, gradient, 3)
    for step in range(3):
        after, state = history[step]
        assert all(np.all(m) for m in jax.tree.leaves(state.mask))
        assert np.isnan(state.threshold)
        assert_close(after, plain_history[step][0])

    after, state = history[3]
    before = history[2][0]
    assert_close(before, plain)
    wanted = rule(gradient(before, 3))
    jax.tree.map(np.testing.assert_array_equal, state.mask, wanted.mask)
    assert state.threshold == wanted.threshold
    for one, other in zip(
        where_frozen(state.mask, before), where_frozen(state.mask, after), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_refresh_and_stop():
    params, gradient = problem()
    rule = pb_jax.quantile(0.5)
    tx = pb_jax.partial_backprop(
        optax.sgd(0.1), rule=rule, start_step=2, refresh_every=3, stop_step=9
    )
    before = params
    _, _, history = train(tx, params, gradient, 12)
    for step, (after, state) in enumerate(history):
        if step < 2 or step >= 9:
            assert pb_jax.frozen_fraction(state.mask) == 0
            assert np.isnan(state.threshold)
        elif step in (2, 5, 8):
            wanted = rule(gradient(before, step)).mask
            jax.tree.map(np.testing.assert_array_equal, state.mask, wanted)
        else:
            jax.tree.map(np.testing.assert_array_equal, state.mask, history[step - 1][1].mask)
        before = after
    assert np.any(history[2][1].mask["w"] != history[5][1].mask["w"])


def test_freezing_gradients_is_what_the_appendix_does():
    """Only the gradient is zeroed: momentum goes on moving the weights."""
    params, gradient = problem()
    rule = pb_jax.fixed_threshold(0.5)
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=rule, start_step=2, freeze="gradients")
    _, _, history = train(tx, params, gradient, 6)

    adam, mask = optax.adam(1e-2), None
    state = adam.init(params)
    for step in range(6):
        grads = gradient(params, step)
        if step == 2:
            mask = jax.tree.map(lambda g: jnp.abs(g) > 0.5, grads)
        if mask is not None:
            grads = jax.tree.map(lambda g, m: g * m, grads, mask)
        updates, state = adam.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert_close(history[step][0], params)
    assert any(
        np.any(a != b)
        for a, b in zip(
            where_frozen(mask, history[1][0]), where_frozen(mask, history[5][0]), strict=True
        )
    )


def test_frozen_gradients_stay_out_of_the_norm():
    mask = jnp.array([True, False])
    tx = pb_jax.freeze_elements(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), mask)
    updates, _ = tx.update(jnp.array([1.0, 1e6]), tx.init(jnp.ones(2)))
    assert updates.tolist() == [-1.0, 0.0]


def test_a_mask_keeps_nan_and_infinity_out():
    mask = jnp.array([True, False, False])
    grads = jnp.array([1.0, np.nan, np.inf])
    for tx in (pb_jax.freeze_elements(optax.sgd(1.0), mask), pb_jax.multiply_by_mask(mask)):
        updates, _ = tx.update(grads, tx.init(grads))
        assert updates[1:].tolist() == [0.0, 0.0]


def test_freeze_elements_for_ever():
    params, gradient = problem()
    mask = {"w": jnp.arange(63).reshape(9, 7) % 3 == 0, "b": False, "none": None}
    tx = pb_jax.freeze_elements(OPTIMIZERS["clipped"](), mask)
    final, state, _ = train(tx, params, gradient, 50)
    assert optax.tree.get(state, "mask")["b"].shape == (7,)
    for one, other in zip(
        where_frozen(state.mask, params), where_frozen(state.mask, final), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert np.all(np.asarray(final["w"] != params["w"])[np.asarray(mask["w"])])


# How it goes with the rest of optax. Each of these trains with a mask from the third update on.


def frozen_after_training(tx, params, gradient, start=3, steps=12):
    final, state, history = train(tx, params, gradient, steps)
    mask = optax.tree.get(state, "mask")
    assert float(pb_jax.frozen_fraction(mask)) > 0.3
    for one, other in zip(
        where_frozen(mask, history[start - 1][0]), where_frozen(mask, final), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    return state


RULE = pb_jax.quantile(0.5)


def test_in_a_chain():
    params, gradient = problem()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE, start_step=3),
        optax.scale(0.5),
    )
    state = frozen_after_training(tx, params, gradient)
    assert np.isfinite(optax.tree.get(state, "threshold"))


def test_under_inject_hyperparams():
    params, gradient = problem()

    @optax.inject_hyperparams
    def make(learning_rate):
        return pb_jax.partial_backprop(
            optax.adam(learning_rate),
            rule=pb_jax.kde_otsu(learning_rate=learning_rate),
            start_step=3,
        )

    schedule = optax.exponential_decay(1e-2, 1, 0.9)
    state = frozen_after_training(make(learning_rate=schedule), params, gradient)
    assert np.isclose(state.hyperparams["learning_rate"], 1e-2 * 0.9**11)

    direct = optax.inject_hyperparams(
        pb_jax.partial_backprop, static_args=("inner", "rule", "freeze")
    )
    frozen_after_training(direct(optax.adam(1e-2), rule=RULE, start_step=3), params, gradient)


def test_under_multi_steps():
    params, gradient = problem()
    inner = pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE, start_step=1)
    tx = optax.MultiSteps(inner, every_k_schedule=3)
    state = frozen_after_training(tx, params, gradient, start=3)
    assert optax.tree.get(state, "gradient_step") == 4


def test_under_apply_if_finite():
    params, gradient = problem()
    tx = optax.apply_if_finite(
        pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE, start_step=3), 5
    )

    def broken(params, step):
        return jax.tree.map(lambda g: jnp.where(step == 6, jnp.nan, g), gradient(params, step))

    state = frozen_after_training(tx, params, broken)
    assert state.total_notfinite == 1
    assert state.inner_state.count == 11


def test_under_masked_and_partition():
    params, gradient = problem()
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE, start_step=3)
    masked = optax.masked(tx, {"w": True, "b": False, "none": None})
    final, state, history = train(masked, params, gradient, 8)
    mask = optax.tree.get(state, "mask")
    assert isinstance(mask["b"], optax.MaskedNode)
    frozen = ~np.asarray(mask["w"])
    np.testing.assert_array_equal(final["w"][frozen], history[2][0]["w"][frozen])

    split = optax.partition(
        {"pb": tx, "sgd": optax.sgd(0.1)}, {"w": "pb", "b": "sgd", "none": None}
    )
    final, state, history = train(split, params, gradient, 8)
    frozen = ~np.asarray(optax.tree.get(state, "mask")["w"])
    np.testing.assert_array_equal(final["w"][frozen], history[2][0]["w"][frozen])
    assert np.all(np.asarray(final["b"] != history[6][0]["b"])[2:4])


def test_passes_extra_arguments_on():
    params, gradient = problem()
    plateau = optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1))
    tx = pb_jax.partial_backprop(plateau, rule=RULE, start_step=3)
    state = tx.init(params)
    for step in range(9):
        updates, state = tx.update(gradient(params, step), state, params, value=1.0, unknown=3)
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(state, "scale") < 0.2


def test_extra_arguments_pass_by_transformations_that_take_none():
    tx = pb_jax.partial_backprop(optax.sgd(0.1), rule=RULE)
    tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3), value=1.0)


def test_under_scan_and_donation():
    params, gradient = problem()
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=pb_jax.kde_otsu(), start_step=3)

    def step(carry, i):
        params, state = carry
        updates, state = tx.update(gradient(params, i), state, params)
        return (optax.apply_updates(params, updates), state), state.threshold

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry):
        return jax.lax.scan(step, carry, jnp.arange(12))

    single, state, _ = train(tx, params, gradient, 12)
    own = jax.tree.map(jnp.copy, (params, tx.init(params)))
    (scanned, scanned_state), thresholds = epoch(own)
    assert np.all(np.isnan(thresholds[:3]))
    assert np.all(thresholds[3:] == thresholds[3])
    jax.tree.map(np.testing.assert_array_equal, scanned_state.mask, state.mask)
    assert_close(scanned, single)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(own[0]))


def test_under_vmap():
    _, gradient = problem()
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE, start_step=2)
    update = jax.jit(tx.update)  # compiled once for all, and once for one
    many = jax.random.normal(jax.random.key(0), (4, 10, 3))

    def run(params):
        state = tx.init(params)
        for i in range(5):
            updates, state = update(gradient(params, i), state, params)
            params = optax.apply_updates(params, updates)
        return params, state.mask

    params, masks = jax.vmap(run)(many)
    for i in range(4):
        single, mask = run(many[i])
        np.testing.assert_allclose(params[i], single, rtol=1e-5)
        np.testing.assert_array_equal(masks[i], mask)


def test_rule_updates_take_the_gradients_place_in_the_rule_only():
    params, grads = jnp.ones(4), jnp.array([1.0, 2.0, 3.0, 4.0])
    tx = pb_jax.partial_backprop(optax.sgd(1.0), rule=RULE)
    updates, state = tx.update(grads, tx.init(params), params, rule_updates=-grads[::-1])
    assert state.mask.tolist() == [True, True, False, False]
    assert updates.tolist() == [-1.0, -2.0, 0.0, 0.0]


def test_random_masks_follow_the_seed_and_the_step():
    params = jnp.ones(1000)

    def masks(seed, steps=2):
        tx = pb_jax.partial_backprop(
            optax.sgd(0.1), rule=pb_jax.random(0.5), refresh_every=1, seed=seed
        )
        state, found = tx.init(params), []
        for _ in range(steps):
            _, state = tx.update(params, state, params)
            found.append(np.asarray(state.mask))
        return found

    first, second = masks(0)
    assert np.any(first != second)
    assert np.any(first != masks(1)[0])
    np.testing.assert_array_equal(first, masks(jax.random.key(0))[0])


def test_thresholds_by_leaf_live_in_the_state():
    params, gradient = problem()
    tx = pb_jax.partial_backprop(optax.sgd(0.1), rule=pb_jax.kde_otsu(scope="leaf"), start_step=1)
    state = tx.init(params)
    assert all(np.isnan(t) for t in jax.tree.leaves(state.threshold))
    _, state, _ = train(tx, params, gradient, 2)
    assert jax.tree.structure(state.threshold) == jax.tree.structure(params)
    assert all(np.isfinite(t) for t in jax.tree.leaves(state.threshold))


def test_abstract_init_and_map_params():
    params, _ = problem()
    shapes = jax.eval_shape(lambda: params)
    for tx in (
        pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE),
        pb_jax.freeze_elements(optax.adam(1e-2), jax.tree.map(lambda p: True, params)),
    ):
        abstract = jax.eval_shape(tx.init, shapes)
        concrete = tx.init(params)
        assert jax.tree.map(jnp.shape, concrete) == jax.tree.map(lambda s: s.shape, abstract)
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=RULE)
    marked = optax.tree.map_params(tx, lambda leaf: "params", tx.init(params))
    assert marked.mask["w"] == "params"
    assert not isinstance(marked.count, str)


def test_integer_leaves_pass_through():
    params = {"w": jnp.ones(4), "steps": jnp.arange(3)}
    tx = pb_jax.partial_backprop(optax.identity(), rule=RULE)
    grads = {"w": jnp.arange(4.0), "steps": jnp.ones(3, int)}
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates["steps"].tolist() == [1, 1, 1]
    assert updates["w"].tolist() == [0.0, 0.0, 2.0, 3.0]
    assert state.mask["steps"].tolist() == [True] * 3


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1), lambda: optax.adam(0.1)])
def test_it_still_finds_the_minimum(make):
    tx = pb_jax.partial_backprop(make(), rule=pb_jax.random(0.5), start_step=0)
    target = jnp.linspace(-1, 1, 40)
    params, state, _ = train(tx, jnp.zeros(40), lambda p, i: 2 * (p - target), 150)
    mask = np.asarray(state.mask)
    np.testing.assert_allclose(params[mask], target[mask], atol=1e-2)
    assert np.all(params[~mask] == 0)


def test_nothing_is_frozen_by_rule_none():
    params, gradient = problem()
    tx = pb_jax.partial_backprop(optax.adamw(1e-2), rule=pb_jax.none(), start_step=1)
    final, _, _ = train(tx, params, gradient, 5)
    plain, _, _ = train(optax.adamw(1e-2), params, gradient, 5)
    assert_close(final, plain)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"start_step": -1},
            ValueError,
            "start_step must be a whole number at least 0 and .* got -1",
        ),
        ({"start_step": 2**40}, ValueError, "at most 2147483647, got 1099511627776"),
        ({"rule": pb_jax.kde_otsu}, TypeError, r"write pb_jax\.kde_otsu\(\.\.\.\)"),
        ({"rule": lambda grads: grads}, TypeError, r"rule must be called as rule\(grads, params"),
        ({"start_step": 1.5}, TypeError, "start_step"),
        ({"refresh_every": 0}, ValueError, "refresh_every must be a whole number at least 1"),
        ({"start_step": 5, "stop_step": 5}, ValueError, "stop_step must be a whole number above 5"),
        ({"freeze": "weights"}, ValueError, "freeze must be 'updates' or 'gradients', got 'weig"),
        ({"rule": "kde_otsu"}, TypeError, "rule must be callable, as pb_jax.kde_otsu"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        pb_jax.partial_backprop(optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            jnp.ones(2, bool),
            ValueError,
            r"the rule's mask must have the shape of the updates, \(3,\)",
        ),
        ([jnp.ones(3, bool)], ValueError, "the rule's mask must have the structure of the updates"),
        (jnp.ones(3), TypeError, "mask must be bool, got float32"),
    ],
)
def test_a_rule_that_returns_no_mask_is_said(mask, error, message):
    def rule(grads, params=None, *, key=None):
        return pb_jax.Selection(mask, jnp.float32(0))

    tx = pb_jax.partial_backprop(optax.sgd(0.1), rule)
    with pytest.raises(error, match=message):
        tx.init(jnp.ones(3))


def test_an_optimizer_that_is_none():
    with pytest.raises(
        TypeError, match=r"inner must be an optax\.GradientTransformation, got 0\.1"
    ):
        pb_jax.partial_backprop(0.1)
    with pytest.raises(TypeError, match="inner must be"):
        pb_jax.freeze_elements(optax.sgd, jnp.array([True]))


@pytest.mark.parametrize(
    "wrap", [lambda mask: pb_jax.freeze_elements(optax.sgd(0.1), mask), pb_jax.multiply_by_mask]
)
def test_masks_that_do_not_fit(wrap):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(TypeError, match="mask must be bool, got int32 at a"):
        wrap({"a": jnp.arange(3), "b": True})
    with pytest.raises(ValueError, match="mask must have the structure of the parameters"):
        wrap({"a": True}).init(params)
    with pytest.raises(ValueError, match=r"shape \(3,\) or be one bool, got \(2,\) at a"):
        wrap({"a": jnp.ones(2, bool), "b": True}).init(params)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pb_jax
from pb_jax.errors import UserError
from pb_jax.training import Freezing, make_freezing, resolve
from pb_jax.training.batches import training_order
from pb_jax.training.classification import cross_entropy, normalised
from pb_jax.training.loop import strong
from pb_jax.training.modules import functional
from pb_jax.training.task import Order
from tests.tiny_training import (
    BATCH,
    MEAN,
    STD,
    STEPS,
    TRAIN,
    Tiny,
    lines,
    saved_state,
    tiny_data,
    tiny_fit,
    tiny_freezing,
    tiny_schedule,
)


def test_epochs_of_masks():
    def masks(**options):
        freezing = Freezing(pb_jax.quantile(0.5), 10, **options)
        return [epoch for epoch in range(1, 10) if freezing.makes_mask(epoch)]

    assert masks() == [3]
    assert masks(start_epoch=1) == [1]
    assert masks(start_epoch=2, refresh_epochs=3) == [2, 5, 8]
    assert masks(start_epoch=2, refresh_epochs=3, stop_epoch=8) == [2, 5]


def plain_loop(transformation, epochs):
    """The same training, written out: `partial_backprop` as anyone would use it."""
    apply, params, state, _ = functional(Tiny(nnx.Rngs(0), stem_bias=False))
    data = tiny_data().train
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    @jax.jit
    def step(params, state, opt_state, rows):
        def loss_fn(params):
            x = normalised(images[rows], MEAN, STD)
            logits, after = apply(params, state, x, train=True)
            return jnp.mean(cross_entropy(logits, labels[rows])), after

        grads, state_ = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = transformation.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state_, opt_state

    opt_state = strong(transformation.init(params))
    for epoch in range(1, epochs + 1):
        for rows in training_order(3, epoch, TRAIN, BATCH):
            params, state, opt_state = step(params, state, opt_state, rows)
    return params, opt_state


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "gradients", "start_epoch": 2},
        {"rule": pb_jax.random(0.5), "start_epoch": 2, "refresh_epochs": 2},
        pytest.param(
            {"rule": pb_jax.weight_magnitude(0.5, scope="leaf"), "start_epoch": 1, "stop_epoch": 4},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gradients", "random-refreshed", "leaf-stopped"],
)
def test_the_loop_is_partial_backprop(tmp_path, options):
    """Masks that the loop makes apart from the update are those of the optax transformation."""
    freezing = tiny_freezing(**options)
    optimizer = optax.adamw(tiny_schedule(), weight_decay=0.01)
    tiny_fit(tmp_path, 4, freezing=freezing, optimizer=optimizer, stem_bias=False)
    params, opt_state = plain_loop(freezing.around(optimizer), 4)
    saved = saved_state(tmp_path, 4)
    assert int(saved["opt_state.count"]) == int(opt_state.count) == 4 * STEPS
    for name, leaf in params.items():
        np.testing.assert_array_equal(saved[f"opt_state.mask.{name}"], opt_state.mask[name])
        np.testing.assert_allclose(saved[f"params.{name}"], leaf, rtol=2e-6, atol=1e-7)


def test_release_gives_everything_back():
    freezing = tiny_freezing(stop_epoch=5)
    params = {"w": jnp.arange(4.0)}
    state = freezing.around(optax.sgd(0.1)).init(params)
    selection = freezing.select(state, {"w": jnp.arange(4.0)}, params)
    masked = state._replace(mask=selection.mask, threshold=selection.threshold)
    assert not jnp.all(masked.mask["w"])
    released = freezing.release(masked)
    assert jax.tree.all(jax.tree.map(lambda m: bool(jnp.all(m)), released.mask))
    assert jnp.isnan(released.threshold)


def test_the_batches_that_are_judged_are_the_epochs_first():
    order = Order(np.arange(12).reshape(4, 3), (5, 6, 7, 8))
    same = Freezing(pb_jax.none(), 4).judged(order)
    np.testing.assert_array_equal(same.rows, [[0, 1, 2]])
    assert same.lengths == (5,)
    smaller = Freezing(pb_jax.none(), 4, batches=3, batch_size=2).judged(order)
    np.testing.assert_array_equal(smaller.rows, [[0, 1], [2, 3], [4, 5]])
    assert smaller.lengths == (5, 6, 6), "the second takes from two steps"
    larger = Freezing(pb_jax.none(), 4, batches=9, batch_size=5).judged(order)
    np.testing.assert_array_equal(larger.rows, np.arange(10).reshape(2, 5))
    assert larger.lengths == (6, 8)


def test_more_examples_than_an_epoch_has_are_refused():
    config = resolve({"batch_size": 10, "freeze": {"batch_size": 41}})
    with pytest.raises(UserError, match=r"freeze\.batch_size=41 is more than the 40 examples"):
        make_freezing(config, steps_per_epoch=4)
    assert make_freezing(config, steps_per_epoch=5).batch_size == 41


def test_freezing_at_initialisation(tmp_path):
    """From the first epoch on: the mask is made before any update, and holds what it freezes."""
    tiny_fit(tmp_path, 1, freezing=tiny_freezing(rule=pb_jax.quantile(0.5), start_epoch=1))
    assert (tmp_path / "mask_step_1.npz").exists()
    saved, initial = saved_state(tmp_path, 1), functional(Tiny(nnx.Rngs(0))).params
    for name, before in initial.items():
        mask, after = saved[f"opt_state.mask.{name}"], saved[f"params.{name}"]
        np.testing.assert_array_equal(after[~mask], np.asarray(before)[~mask])
    assert 0.4 < lines(tmp_path)[0]["frozen_fraction"] < 0.6

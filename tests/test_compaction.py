import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import pb_jax
from pb_jax.training.optimizers import adjustable, amsgrad_torch

SCHEDULE = optax.exponential_decay(1e-2, 1, 0.9)
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(SCHEDULE, momentum=0.9),
    "nesterov": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.05, momentum=0.9, nesterov=True)
    ),
    "adam": lambda: optax.adam(SCHEDULE),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "amsgrad_torch": lambda: amsgrad_torch(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, centered=True, momentum=0.9),
    "adagrad": lambda: optax.adagrad(1e-2),
    "novograd": lambda: optax.novograd(1e-2, weight_decay=1e-2),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)),
    "adjustable": lambda: adjustable("adamw", 1e-2, weight_decay=1e-2),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, weight_decay=1e-2),
    "several_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}


def problem(dtype="float32"):
    """A leaf of each kind, and a mask."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 2, 5)), dtype),
        "bias": jnp.asarray([0.0, -0.0, 1.0, -1.0, 1e-30, -0.0], dtype),
        "whole": jnp.asarray(rng.normal(size=(2, 2)), dtype),
        "frozen": jnp.asarray([[-0.0], [2.0]], dtype),
        "scalar": jnp.asarray(3.0, dtype),
        "empty": jnp.zeros((0, 3), dtype),
        "none": None,
    }
    mask = {
        "kernel": jnp.asarray(rng.random((3, 2, 5)) < 0.3),
        "bias": jnp.array([True, False, False, True, True, False]),
        "whole": True,
        "frozen": False,
        "scalar": np.array(True),
        "empty": True,
        "none": None,
    }
    return params, mask


def gradients(params, step):
    """Such that rest on nothing, of every size."""
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 4**step, p.dtype), params)


def whole(mask, params):
    return jax.tree.map(lambda m, p: np.broadcast_to(np.asarray(m), p.shape), mask, params)


def bits(leaf):
    return np.asarray(leaf).view(f"u{leaf.dtype.itemsize}")


def assert_close(one, other, rtol=1e-5, atol=1e-7):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def assert_frozen_to_the_bit(mask, before, after):
    jax.tree.map(
        lambda m, b, a: np.testing.assert_array_equal(bits(b)[~m], bits(a)[~m]),
        whole(mask, before),
        before,
        after,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_updates_of_the_dense_transformation(name):
    params, mask = problem()
    inner = OPTIMIZERS[name]()
    dense, small = (
        pb_jax.freeze_elements(inner, mask),
        pb_jax.compact(inner, mask, check=False),
    )

    @jax.jit
    def step(grads, dense_params, dense_state, small_params, state, placed, placed_state):
        wanted, dense_state = dense.update(grads, dense_state, dense_params)
        updates, state = small.update(grads, state, small_params)
        placed, placed_state = pb_jax.apply_compact(inner, grads, placed_state, placed)
        dense_params = optax.apply_updates(dense_params, wanted)
        small_params = optax.apply_updates(small_params, updates)
        ways = dense_params, dense_state, small_params, state, placed, placed_state
        return wanted, updates, ways

    ways = (params, dense.init(params), *(params, small.init(params)) * 2)
    for i in range(5):
        wanted, updates, ways = step(gradients(params, i), *ways)
        assert_close(wanted, updates)
    dense_params, dense_state, small_params, state, placed, placed_state = ways
    for other, other_state in ((small_params, state), (placed, placed_state)):
        assert_close(dense_params, other)
        assert_frozen_to_the_bit(mask, params, other)
        from_dense = pb_jax.compact_state(inner, dense_state.inner_state, mask, params, check=False)
        assert_close(from_dense, other_state)
    moved = jax.tree.map(lambda p, q: np.asarray(p != q), params, placed)
    assert moved["kernel"].sum() == np.sum(mask["kernel"]), "the others train"

    back = pb_jax.expand_state(inner, state, params)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, dense_state.inner_state)
    again = pb_jax.compact_state(inner, back, mask, params, check=False)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    params, mask = problem(dtype)
    inner = optax.adamw(1e-2)
    dense, small = pb_jax.freeze_elements(inner, mask), pb_jax.compact(inner, mask, check=False)

    @jax.jit
    def step(grads, dense_state, state):
        wanted, _ = dense.update(grads, dense_state, params)
        updates, _ = small.update(grads, state, params)
        return wanted, updates, *pb_jax.apply_compact(inner, grads, state, params)

    wanted, updates, placed, state = step(
        gradients(params, 0), dense.init(params), small.init(params)
    )
    assert optax.tree.get(state, "mu")["kernel"].dtype == dtype
    assert_close(wanted, updates, rtol=0.02, atol=1e-4)
    assert jax.tree.map(lambda p: p.dtype, placed) == jax.tree.map(lambda p: p.dtype, params)
    assert_frozen_to_the_bit(mask, params, placed)


def test_updates_wider_than_the_parameters():
    """The sum is rounded once, as by `optax.apply_updates`."""
    params, mask = jnp.full(4, 256.0, "bfloat16"), np.array([True, True, False, True])
    inner = optax.scale(1.0)
    grads = jnp.array([1.0078125, 3.0, 3.0, -1.0])
    state = pb_jax.compact(inner, mask, check=False).init(params)
    wanted = optax.apply_updates(params, jnp.where(mask, grads, -0.0))
    got, _ = pb_jax.apply_compact(inner, grads, state, params)
    np.testing.assert_array_equal(bits(got), bits(wanted))


def test_what_the_state_holds():
    params, mask = problem()
    state = pb_jax.compact(optax.adam(0.1), mask, check=False).init(params)
    found = pb_jax.unpack_mask(optax.tree.get(state, "mask"))
    jax.tree.map(np.testing.assert_array_equal, found, whole(mask, params))
    nothing = optax.MaskedNode()
    np.testing.assert_array_equal(state.indices["bias"], [0, 3, 4])
    np.testing.assert_array_equal(
        state.indices["kernel"], np.flatnonzero(np.asarray(mask["kernel"]))
    )
    rest = {k: state.indices[k] for k in ("whole", "frozen", "scalar", "empty", "none")}
    assert rest == {"whole": None, "frozen": nothing, "scalar": None, "empty": None, "none": None}
    shapes = jax.tree.map(jnp.shape, optax.tree.get(state, "mu"), is_leaf=lambda x: x is nothing)
    count = int(np.sum(mask["kernel"]))
    assert shapes == {
        "kernel": (count,),
        "bias": (3,),
        "whole": (2, 2),
        "frozen": nothing,
        "scalar": (),
        "empty": (0, 3),
        "none": None,
    }
    # As it lies in a checkpoint, and as orbax wants it: arrays, none of them without entries.
    del params["empty"], mask["empty"]
    state = pb_jax.compact(optax.adam(0.1), mask, check=False).init(params)
    assert all(isinstance(x, jax.Array) and x.size for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("make", "most"),
    [(lambda: amsgrad_torch(1e-3), 0.30), (lambda: optax.sgd(1e-3, momentum=0.9), 0.45)],
)
def test_bytes_at_80_percent_frozen(make, most):
    params = {"w": jnp.ones((100, 100)), "b": jnp.ones(100)}
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda p: rng.permutation(p.size).reshape(p.shape) % 5 == 0, params)
    dense = make().init(params)
    state = pb_jax.compact(make(), mask, check=False).init(params)

    def count(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert count(state) <= most * count(dense)


def test_from_dense_to_compact_and_back_in_a_run():
    params, mask = problem()
    inner = OPTIMIZERS["adjustable"]()
    dense = pb_jax.freeze_elements(inner, mask)

    def train(params, state, steps, update):
        for i in steps:
            params, state = update(gradients(params, i), state, params)
        return params, state

    @jax.jit
    def dense_update(grads, state, params):
        updates, state = dense.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def small_update(grads, state, params):
        return pb_jax.apply_compact(inner, grads, state, params)

    start, state = train(params, dense.init(params), range(2), dense_update)
    wanted, wanted_state = train(start, state, range(2, 6), dense_update)

    shapes = jax.eval_shape(lambda: params)
    small = pb_jax.compact_state(inner, state.inner_state, mask, shapes)
    middle, small = train(start, small, range(2, 4), small_update)
    back = state._replace(
        inner_state=jax.jit(functools.partial(pb_jax.expand_state, inner))(small, middle)
    )
    got, got_state = train(middle, back, range(4, 6), dense_update)
    assert_close(wanted, got)
    assert_close(wanted_state, got_state)
    assert got_state.inner_state.count == 6


def test_frozen_entries_begin_anew_in_the_expanded_state():
    params, mask = jnp.arange(1.0, 4.0), np.array([True, False, True])
    for inner, wanted in (
        (optax.adagrad(0.1, initial_accumulator_value=0.5), [1.5, 0.5, 9.5]),
        (optax.contrib.schedule_free_sgd(0.0, b1=0.9), [1.0, 2.0, 3.0]),
    ):
        _, state = inner.update(jnp.array([1.0, 2.0, 3.0]), inner.init(params), params)
        small = pb_jax.compact_state(inner, state, mask, params, check=False)
        back = pb_jax.expand_state(inner, small, params)
        found = [leaf for leaf in jax.tree.leaves(back) if leaf.shape == (3,)]
        np.testing.assert_allclose(found[0], wanted)


def test_states_with_a_history_of_each_entry():
    params, mask = jnp.arange(1.0, 7.0).reshape(2, 3), np.array([[True, False, True]] * 2)
    inner = optax.scale_by_lbfgs(memory_size=2)
    _, state = inner.update(params**2, inner.init(params), params)
    small = pb_jax.compact_state(inner, state, mask, params, check=False)
    assert small.inner_state.diff_params_memory.shape == (2, 4)
    assert small.inner_state.params.tolist() == [1.0, 3.0, 4.0, 6.0]
    back = pb_jax.expand_state(inner, small, params)
    np.testing.assert_array_equal(back.params, np.where(mask, params, 0))
    assert back.diff_params_memory.shape == (2, 2, 3)


# What is no business of single entries.

PARTLY = {"kernel": np.eye(4, 5) > 0, "bias": True}
LEAVES = {"kernel": True, "bias": False}


def by_axes(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: optax.lamb(1e-2), "the update of kernel is off by"),
        (lambda: optax.lars(optax.linear_schedule(0.0, 1e-2, 50)), "the update of kernel is off"),
        (lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8), "the update of kernel is off"),
        (
            lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
            "its state's v_row.kernel depends on more",
        ),
        (lambda: optax.contrib.muon(1e-2), "its state's .*kernel depends on more"),
        (lambda: optax.sm3(1e-2), "its state's .*kernel.* depends on more"),
        (lambda: optax.adamw(1e-2, weight_decay=1e-4, mask=by_axes), "the update of kernel is off"),
        (lambda: optax.add_noise(0.1, 0.5, 0), "the update of kernel is off by"),
        (lambda: optax.adaptive_grad_clip(0.01), "the update of kernel is off by"),
        (lambda: optax.centralize(), "the update of kernel is off by"),
    ],
)
def test_optimizers_that_are_not_element_wise(make, what):
    params = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}
    with pytest.raises(ValueError, match=f"inner is not element-wise: .*{what}"):
        pb_jax.compact(make(), PARTLY).init(params)
    with pytest.raises(ValueError, match=f"inner is not element-wise: .*{what}"):
        pb_jax.compact_state(make(), make().init(params), PARTLY, params)


@pytest.mark.parametrize(
    "make",
    [lambda: optax.lamb(1e-2), lambda: optax.contrib.muon(1e-2), lambda: optax.adafactor(1e-2)],
)
def test_they_go_where_whole_leaves_are_frozen(make):
    params = {"kernel": jnp.ones((4, 5)) / 8, "bias": jnp.ones(5)}
    dense, small = pb_jax.freeze_elements(make(), LEAVES), pb_jax.compact(make(), LEAVES)
    grads = {"kernel": jnp.arange(20.0).reshape(4, 5), "bias": jnp.ones(5)}
    wanted, _ = dense.update(grads, dense.init(params), params)
    got, state = small.update(grads, small.init(params), params)
    assert_close(wanted, got)
    assert "bias" not in str([path for path, _ in jax.tree.leaves_with_path(state.inner_state)])


def test_one_leaf_of_many_stands_for_its_like():
    """Names tell, too: only one kind is scaled by its norm."""

    def kernels(params):
        return {name: {"kernel": True, "kind": False} for name in params}

    inner = optax.lars(1e-2, trust_ratio_mask=kernels)
    params = {f"layer{i}": {"kernel": jnp.ones((2, 3)), "kind": jnp.ones((2, 3))} for i in range(9)}
    mask = jax.tree.map(lambda p: np.eye(2, 3) > 0, params)
    with pytest.raises(ValueError, match=r"the update of layer0\.kernel is off"):
        pb_jax.compact(inner, mask).init(params)
    mask = {name: {"kernel": True, "kind": leaf["kind"]} for name, leaf in mask.items()}
    pb_jax.compact(inner, mask).init(params)


def test_an_optimizer_that_cannot_be_tried():
    params, mask = jnp.ones(3), np.array([True, False, True])
    with pytest.raises(ValueError, match=r"inner could not be tried .*'value_fn'.* check=False"):
        pb_jax.compact(optax.lbfgs(), mask).init(params)

    def update(updates, state, params, *, mine, **extra_args):
        return optax.tree.scale(mine, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ValueError, match=r"inner could not be tried .*'mine'"):
        pb_jax.compact(inner, mask).init(params)
    tx = pb_jax.compact(inner, mask, check=False)
    updates, _ = tx.update(params, tx.init(params), params, mine=2.0)
    assert updates.tolist() == [2.0, 0.0, 2.0]


def test_passed_by_where_hyperparameters_are_traced():
    params, mask = jnp.ones(3), np.array([True, False, True])

    @jax.jit
    def run(rate):
        tx = pb_jax.compact(optax.adam(rate), mask)
        return tx.update(params, tx.init(params), params)[0]

    np.testing.assert_allclose(run(0.5), [-0.5, 0.0, -0.5], rtol=1e-5)


# How it goes with the rest.


def test_gradients_that_nobody_computed():
    """Leaves that are frozen as a whole need none; parts may come as they are."""
    params, mask = problem()
    inner = optax.adamw(1e-2)
    tx = pb_jax.compact(inner, mask, check=False)
    grads, state = gradients(params, 0), tx.init(params)
    wanted, _ = tx.update(grads, state, params)
    kernel = np.asarray(grads["kernel"])[np.asarray(mask["kernel"])]
    for missing in (None, optax.MaskedNode(), 0.0):
        updates, _ = tx.update(
            {**grads, "frozen": missing, "kernel": kernel.reshape(1, -1)}, state, params
        )
        assert updates["frozen"] is missing
        jax.tree.map(np.testing.assert_array_equal, {**updates, "frozen": wanted["frozen"]}, wanted)
        moved, _ = pb_jax.apply_compact(inner, {**grads, "frozen": missing}, state, params)
        assert moved["frozen"] is params["frozen"]


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.__version_info__ < (0, 11),
    reason="XLA:CPU drops barriers before it places copies, up to jax 0.10",
)
def test_donated_parameters_are_written_in_place():
    inner, params = optax.adam(0.1), {name: jnp.ones((64, 64)) for name in "vw"}
    mask = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 2 == 0, params)
    state = pb_jax.compact(inner, mask).init(params)

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params["w"]) @ params["v"])

    def step(params, state, x):
        return pb_jax.apply_compact(inner, jax.grad(loss)(params, x), state, params)

    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, jnp.ones((8, 64)))
    text = program.compile().as_text()
    assert not re.findall(r"= f32\[(?:64,64|4096)\]\S* copy\(", text)


def test_compiled_once_and_donated():
    params, mask = problem()
    inner = optax.amsgrad(1e-2)
    state = jax.tree.map(jnp.copy, pb_jax.compact(inner, mask, check=False).init(params))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        return pb_jax.apply_compact(inner, grads, state, params)

    own = jax.tree.map(jnp.copy, params)
    moved, new = step(own, state, gradients(params, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((own, state)) if leaf.size)
    moved, new = step(moved, new, gradients(params, 1))
    assert step._cache_size() == 1
    assert_frozen_to_the_bit(mask, params, moved)


def test_abstract_init():
    params, mask = problem()
    tx = pb_jax.compact(optax.adam(1e-2), mask, check=False)
    abstract, concrete = jax.eval_shape(tx.init, params), tx.init(params)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), abstract) == jax.tree.map(
        lambda a: (a.shape, a.dtype), concrete
    )


def test_extra_arguments_chains_and_no_parameters():
    params, mask = jnp.ones(3), np.array([True, False, True])
    inner = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1))
    tx = optax.chain(pb_jax.compact(inner, mask), optax.scale(0.5))
    state, updates = tx.init(params), params
    for _ in range(5):
        updates, state = tx.update(params, state, value=1.0, unknown=3)
    assert optax.tree.get(state, "scale") < 0.2
    assert updates[1] == 0
    assert updates[0] == -0.5 * optax.tree.get(state, "scale")


@pytest.mark.parametrize("trains", [True, False])
def test_all_or_nothing(trains):
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    tx = pb_jax.compact(OPTIMIZERS["clipped"](), {"a": trains, "b": trains})
    updates, state = tx.update(params, tx.init(params), params)
    assert all(bool(np.all(u != 0)) is trains for u in jax.tree.leaves(updates))
    assert (optax.tree.get(state, "mu")["a"] == optax.MaskedNode()) is not trains


def test_integer_leaves_pass_through():
    params = {"w": jnp.ones(2), "steps": jnp.arange(3)}
    mask = {"w": np.array([True, False]), "steps": np.array([True, False, False])}
    inner = optax.identity()
    tx = pb_jax.compact(inner, mask)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["steps"].tolist() == [0, 1, 2]
    assert updates["w"].tolist() == [1.0, 0.0]


def test_states_of_flax():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    mask = jax.tree.map(lambda p: p > 0, params)
    inner = optax.adamw(1e-2)
    tx = pb_jax.compact(inner, mask)
    updates, state = tx.update(params, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    trains = np.asarray(mask["kernel"][...])
    assert 0 < trains.sum() < 12
    before, after = params["kernel"][...], moved["kernel"][...]
    np.testing.assert_array_equal(np.asarray(before != after), trains)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    back = pb_jax.expand_state(inner, state, params)
    assert jax.tree.structure(back) == jax.tree.structure(inner.init(params))


LEAF = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(deadline=None, max_examples=15)
@given(st.lists(LEAF, min_size=1, max_size=3), st.floats(0, 1), st.integers(0, 99))
def test_any_tree_and_mask(shapes, share, seed):
    rng = np.random.default_rng(seed)
    params = {f"p{i}": rng.normal(size=shape).astype("f4") for i, shape in enumerate(shapes)}
    mask = jax.tree.map(lambda p: rng.random(p.shape) < share, params)
    params = jax.tree.map(jnp.asarray, params)
    inner = optax.trace(0.5)
    state = jax.tree.map(lambda p: p * 3, optax.TraceState(params))
    tx, dense = pb_jax.compact(inner, mask, check=False), pb_jax.freeze_elements(inner, mask)
    small = pb_jax.compact_state(inner, state, mask, params, check=False)
    for name, trains in mask.items():
        values = small.inner_state.trace[name]
        if trains.size and not trains.any():
            assert values == optax.MaskedNode()
        else:
            np.testing.assert_array_equal(
                np.ravel(values), np.asarray(state.trace[name])[trains].ravel()
            )
    back = pb_jax.expand_state(inner, small, params)
    jax.tree.map(
        lambda b, m, t: np.testing.assert_array_equal(b, np.where(m, t, 0)),
        back.trace,
        mask,
        state.trace,
    )
    updates, _ = tx.update(params, small, params)
    wanted, _ = dense.update(params, dense.init(params)._replace(inner_state=back), params)
    jax.tree.map(lambda u, w: np.testing.assert_array_equal(bits(u), bits(w)), updates, wanted)


# Wrong use.


def test_masks_that_do_not_fit():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    inner = optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"inner must be an optax\.GradientTransformation, got 0"):
        pb_jax.compact(0.1, True)
    with pytest.raises(TypeError, match="mask must be bool, got int32 at a"):
        pb_jax.compact(inner, {"a": jnp.arange(3), "b": True})
    with pytest.raises(ValueError, match="mask must have the structure of the parameters"):
        pb_jax.compact(inner, {"a": True}).init(params)
    with pytest.raises(ValueError, match=r"shape \(3,\) or be one bool, got \(2,\) at a"):
        pb_jax.compact(inner, {"a": np.ones(2, bool), "b": True}).init(params)
    with pytest.raises(TypeError, match=r"mask must hold concrete values.* take it out of jax"):
        jax.jit(lambda mask: pb_jax.compact(inner, mask).init(jnp.ones(2)))(jnp.ones(2, bool))


def test_trees_that_do_not_fit_the_state():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    mask = {"a": np.array([True, False, True]), "b": True}
    inner = optax.sgd(0.1, momentum=0.9)
    tx = pb_jax.compact(inner, mask, check=False)
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"state must be a CompactState, .* got tuple"):
        pb_jax.apply_compact(optax.sgd(0.1), params, (), params)
    with pytest.raises(ValueError, match="updates must have the structure of the mask"):
        tx.update({"a": params["a"]}, state)
    with pytest.raises(ValueError, match=r"updates must have the mask's shape \(3,\) at a, got"):
        tx.update({"a": jnp.ones(4), "b": jnp.ones(2)}, state)
    with pytest.raises(ValueError, match=r"params must have the mask's shape \(2,\) at b"):
        pb_jax.expand_state(inner, state, {"a": jnp.ones(3), "b": jnp.ones(4)})
    with pytest.raises(ValueError, match="state must be a state of inner for these parameters"):
        pb_jax.compact_state(inner, optax.adam(0.1).init(params), mask, params, check=False)
    with pytest.raises(ValueError, match=r"with shape \(3,\) at 0.trace.a, got \(4,\)"):
        pb_jax.compact_state(
            inner, inner.init({"a": jnp.ones(4), "b": jnp.ones(2)}), mask, params, check=False
        )
    with pytest.raises(ValueError, match=r"state.inner_state must be .* at 0.trace.a, got \(3,\)"):
        pb_jax.expand_state(inner, state._replace(inner_state=inner.init(params)), params)
    strange = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u[:1], updates))
    tx = pb_jax.compact(strange, mask, check=False)
    with pytest.raises(ValueError, match=r"inner must return updates of the shape \(2,\)"):
        tx.update(params, tx.init(params))

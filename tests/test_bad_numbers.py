"""Trees, dtypes and values of any kind through all that `pb_jax` offers.

What is promised of them is in docs/reliability.md, under "Numbers".
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pb_jax
from tests.test_rules import RULES
from tests.test_sharding import GROUPED

RULES = {**RULES, **GROUPED}
# Zeros of both signs; the last and the first numbers of three formats, and beyond; ordinary ones.
VALUES = [0.0, -0.0, np.nan, np.inf, -np.inf, 65504.0, -7e4, 3.4e38, -1e-38, 1e-45, 6e-8]
VALUES += [1.0, -2.0, 0.5, 3.0, -1e-3]
NUMBERS = st.lists(st.sampled_from(VALUES), min_size=1, max_size=9)
SHAPES = [(), (1,), (0,), (0, 3), (2, 1, 3), (4, 3), (7,), (40, 5)]
DTYPES = ["float16", "bfloat16", "float32", "complex64"]
TINY = np.finfo(np.float32).tiny


def filled(shape, dtype, numbers):
    with np.errstate(over="ignore"):
        return jnp.asarray(np.resize(numbers, shape).astype(jnp.dtype(dtype)))


def template(numbers):
    """A tree of every kind of leaf, always of the same shapes, so that it is compiled once."""
    leaf = {d: filled((4, 3), d, numbers[i:] + numbers[:i]) for i, d in enumerate(DTYPES)}
    scalar, empty = filled((), "float32", numbers), jnp.zeros((0, 3))
    return {**leaf, "few": [scalar, empty, None, ()], "whole": (jnp.arange(2), jnp.array(True))}


def two(trees):
    """Pairs of trees of one structure."""
    return st.tuples(NUMBERS, NUMBERS).map(lambda numbers: tuple(map(trees, numbers)))


@st.composite
def any_two(draw):
    """The same, of any structure."""
    floats = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
    others = st.sampled_from([None, "int", "bool", "uint8", "python"])
    trees = st.recursive(
        floats | floats | others,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner),
        max_leaves=6,
    )
    kinds = draw(trees)

    def tree(numbers):
        other = {"int": jnp.arange(3), "bool": jnp.array([True]), "uint8": np.ones(2, np.uint8)}

        def one(kind):
            if isinstance(kind, tuple):
                return filled(*kind, numbers)
            return numbers[0] if kind == "python" else other[kind]

        return jax.tree.map(one, kinds, is_leaf=lambda x: isinstance(x, tuple))

    return tree(draw(NUMBERS)), tree(draw(NUMBERS))


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def magnitudes(leaf):
    """As a rule sees them."""
    values = np.abs(np.asarray(leaf))
    return np.where(values < TINY, 0, values.astype(np.float32))


def bits(leaf):
    return np.asarray(leaf).tobytes()


def assert_decided(name, selection, grads, params):
    """What every rule promises of every input."""
    assert jax.tree.structure(selection.mask) == jax.tree.structure(grads)
    judged = params if "weight_magnitude" in name else grads
    thresholds = selection.threshold
    if jax.tree.structure(thresholds).num_nodes == 1 and jax.tree.structure(grads).num_leaves != 1:
        thresholds = jax.tree.map(lambda _: selection.threshold, grads)
    for trains, seen, threshold in zip(
        *map(jax.tree.leaves, (selection.mask, judged, thresholds)), strict=True
    ):
        assert (trains.dtype, trains.shape) == (bool, jnp.shape(seen))
        trains = np.asarray(trains)
        if not is_float(seen):
            assert trains.all(), "integers are not frozen"
        elif "random" not in name:  # which has no threshold, and looks at nothing
            assert trains.all() or not np.isnan(threshold), "frozen, and nobody knows why"
            if name in RULES and name not in GROUPED:
                assert trains[~np.isfinite(magnitudes(seen))].all(), "not finite: goes on training"
    share = float(pb_jax.frozen_fraction(selection.mask))
    summary = pb_jax.mask_summary(selection.mask)
    assert 0 <= share <= 1
    assert summary.frozen_fraction == pytest.approx(share)
    assert 0 <= float(pb_jax.zero_gradient_fraction(grads)) <= 1
    packed = pb_jax.pack_mask(selection.mask)
    for one, other in zip(
        *map(jax.tree.leaves, (pb_jax.unpack_mask(packed), selection.mask)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def assert_estimated(estimate, grads):
    values = [magnitudes(leaf).ravel() for leaf in jax.tree.leaves(grads) if is_float(leaf)]
    values = np.concatenate([*values, np.zeros(0, np.float32)])
    finite = values[np.isfinite(values) & (values > 0)]
    counts = int(estimate.num_total), int(estimate.num_zero), int(estimate.num_nonfinite)
    assert counts == (values.size, np.sum(values == 0), np.sum(~np.isfinite(values)))
    spread = finite.size > 0 and finite.min() < finite.max()
    assert spread or np.isnan(estimate.threshold)
    # Numbers next to others many times as large may all be in one sub-range.
    if not np.isnan(estimate.threshold):
        assert finite.min() * (1 - 1e-6) <= estimate.threshold <= finite.max()


def assert_frozen(before, after, mask):
    """To the bit, whatever the gradients; the rest has kept shape and dtype."""
    for old, new, trains in zip(*map(jax.tree.leaves, (before, after, mask)), strict=True):
        assert (jnp.shape(old), jnp.result_type(old)) == (new.shape, new.dtype)
        trains = np.broadcast_to(trains, new.shape)
        if is_float(old):
            old, new = np.asarray(jnp.asarray(old)), np.asarray(new)
            assert bits(old[~trains]) == bits(new[~trains])


def put_through(name, rule, grads, params):
    """One pair of trees through a rule and all that goes by its mask."""
    selection = rule(grads, params)
    assert_decided(name, selection, grads, params)
    mask, inner = selection.mask, optax.trace(0.5)
    held = {"freeze_elements": pb_jax.freeze_elements(inner, mask)}
    held["compact"] = pb_jax.compact(inner, mask, check=False)
    held["partial_backprop"] = pb_jax.partial_backprop(inner, lambda *_, **__: selection)
    held["multiply_by_mask"] = optax.chain(inner, pb_jax.multiply_by_mask(mask))
    found, states = {}, {}
    for way, tx in held.items():
        updates, states[way] = tx.update(grads, tx.init(params), params)
        found[way] = optax.apply_updates(params, updates)
        assert_frozen(params, found[way], mask)
    small = pb_jax.compact_state(
        inner, states["freeze_elements"].inner_state, mask, params, check=False
    )
    fresh = held["compact"].init(params)
    taken = pb_jax.compact_gradients(grads, fresh)
    found["apply_compact"], after = pb_jax.apply_compact(inner, taken, fresh, params)
    assert_frozen(params, found["apply_compact"], mask)
    for state in (states["compact"], after):
        for one, other in zip(*map(jax.tree.leaves, (small, state)), strict=True):
            assert bits(one) == bits(other)
    back = pb_jax.expand_state(inner, small, params)
    again = pb_jax.compact_state(inner, back, mask, params, check=False)
    for one, other in zip(*map(jax.tree.leaves, (small, again)), strict=True):
        assert bits(one) == bits(other)
    wanted = jax.tree.leaves(found.pop("freeze_elements"))
    for way, params in found.items():
        for one, other in zip(wanted, jax.tree.leaves(params), strict=True):
            # bfloat16 by itself has no NaN that equals another.
            one, other = (np.asarray(leaf).astype(np.complex128) for leaf in (one, other))
            np.testing.assert_array_equal(one, other, err_msg=way)


@jax.jit
def decide(grads, params):
    names = "kde_otsu", "largest", "fixed_threshold"
    return {name: RULES[name](grads, params) for name in names}


@settings(deadline=None, max_examples=30)
@given(two(template))
def test_any_values(pair):
    selections = decide(*pair)
    assert_estimated(selections["kde_otsu"].estimate, pair[0])
    for name, selection in selections.items():
        assert_decided(name, selection, *pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_any_values_through_everything(name):
    @settings(deadline=None, max_examples=40)
    @given(two(template))
    def run(pair):
        put_through(name, RULES[name], *pair)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_any_trees_through_everything(name):
    @settings(deadline=None, max_examples=40)
    @given(any_two())
    def run(pair):
        assert_estimated(pb_jax.estimate_threshold(pair[0]), pair[0])
        put_through(name, RULES[name], *pair)

    run()


def test_every_public_function_that_takes_a_tree_is_tried():
    """Rules by name, all else by being called above."""
    tried = {name.split(" ")[0].strip(",") for name in RULES} - {"largest"} | {"by_group"}
    for function in (put_through, assert_decided, test_any_trees_through_everything):
        tried |= {
            name for name in pb_jax.__all__ if f"pb_jax.{name}(" in inspect.getsource(function)
        }
    public = {name for name in pb_jax.__all__ if inspect.isfunction(getattr(pb_jax, name))}
    assert public == tried


WITH_UNIT = {
    "kde_otsu": pb_jax.kde_otsu,
    "mean_threshold": pb_jax.mean_threshold,
    "quantile": functools.partial(pb_jax.quantile, 0.4),
    "largest": functools.partial(pb_jax.quantile, 0.6, largest=True),
}


@pytest.mark.parametrize(
    "name", [pytest.param("kde_otsu", marks=pytest.mark.slow), *list(WITH_UNIT)[1:]]
)
def test_a_learning_rate_that_makes_no_unit(name):
    """A schedule may end at 0. The threshold is infinite, or NaN and nothing is frozen by it."""
    grads = {"some": jnp.arange(-4.0, 8.0), "zeros": jnp.zeros(9)}
    decide = jax.jit(lambda rate: WITH_UNIT[name](learning_rate=rate)(grads))
    for alpha in (0.0, np.nan):
        selection = decide(alpha)
        assert np.isinf(selection.threshold) or np.isnan(selection.threshold)
        assert_decided(name, selection, grads, grads)
        if name == "quantile" or np.isnan(alpha):
            assert all(map(np.all, selection.mask.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_only_bad_numbers_freeze_nothing(name):
    for values in ([np.nan] * 3, [np.inf, np.nan, -np.inf], [np.nan]):
        grads = jnp.array(values)
        selection = RULES[name](grads, grads)
        if "random" not in name:
            assert np.all(selection.mask)


def test_one_weight():
    for value, frozen in ((0.0, True), (2.0, False), (np.nan, False)):
        grads = jnp.array(value)
        assert bool(pb_jax.fixed_threshold(0.5)(grads).mask) is not frozen
        assert pb_jax.quantile(0.4)(grads).mask, "its share is less than half a weight"
        assert bool(pb_jax.quantile(0.6)(grads).mask) is bool(np.isnan(value))


def test_half_precision_does_not_overflow():
    """65504 / 1e-3 is no float16; the gradients are judged in float32."""
    grads = jnp.array([65504.0, 60000.0, 6e-8, 1e-3, 2.0], jnp.float16)
    selection = pb_jax.quantile(0.6, learning_rate=1e-3)(grads)
    assert np.isclose(selection.threshold, 2000)
    assert selection.mask.tolist() == [True, True, False, False, False]
    selection = pb_jax.quantile(0.6, learning_rate=1e-3)(jnp.array([3e38, 2e38, 1e38, 0.0, 1.0]))
    assert selection.mask.tolist() == [True, True, False, False, False]
    assert selection.threshold == np.inf, "in units of α; the mask is that of 1e38"


def test_eight_bits():
    grads = jnp.array([0.5, -1.0, 2.0, -3.0]).astype(jnp.float8_e5m2)
    assert pb_jax.quantile(0.5)(grads).mask.tolist() == [False, False, True, True]


def test_more_weights_than_can_be_counted():
    leaf = jax.ShapeDtypeStruct((2**30,), jnp.float16)
    with pytest.raises(ValueError, match="2147483648 weights; at most 2147483647 can be counted"):
        jax.eval_shape(pb_jax.quantile(0.5), [leaf, leaf])


@pytest.mark.slow
def test_a_hundred_million_weights():
    """Each number once, so that what is wanted is known: 0.1 GB a byte, several times over."""
    n = 10**8
    rng = np.random.default_rng(0)
    grads = rng.random(n, np.float32)
    counted = np.count_nonzero
    grads[::5] = 0
    grads[7] = np.nan
    threshold = pb_jax.estimate_threshold(grads)
    assert (int(threshold.num_total), int(threshold.num_nonfinite)) == (n, 1)
    assert int(threshold.num_zero) == counted(grads == 0)
    assert threshold.threshold == pytest.approx(0.5, abs=0.03)
    for rule in (pb_jax.kde_otsu(), pb_jax.quantile(0.6), pb_jax.mean_threshold()):
        selection = rule(jnp.asarray(grads))
        mask = np.asarray(selection.mask)
        np.testing.assert_array_equal(mask, ~(grads <= np.asarray(selection.threshold)))
        summary = pb_jax.mask_summary(selection.mask)
        assert (summary.size, summary.trainable) == (n, counted(mask))
        share = float(pb_jax.frozen_fraction(selection.mask))
        assert share == pytest.approx(summary.frozen / n, rel=1e-6)
    packed = pb_jax.pack_mask(selection.mask)
    assert packed.bits.nbytes == n // 8
    np.testing.assert_array_equal(pb_jax.unpack_mask(packed), mask)
    del packed, selection

    inner, params = optax.sgd(0.5, momentum=0.9), jnp.ones(n)
    state = pb_jax.compact(inner, mask, check=False).init(params)
    assert optax.tree.get(state, "trace").shape == (counted(mask),)
    step = jax.jit(lambda *given: pb_jax.apply_compact(inner, *given), donate_argnums=(1, 2))
    moved = np.asarray(step(jnp.asarray(grads), state, params)[0])
    wanted = np.where(mask, np.float32(1) - np.float32(0.5) * grads, np.float32(1))
    np.testing.assert_array_equal(moved, wanted)
    tx = pb_jax.partial_backprop(optax.sgd(0.5), pb_jax.quantile(0.6))
    updates, state = jax.jit(tx.update)(jnp.asarray(grads), tx.init(jnp.ones(n)), jnp.ones(n))
    assert counted(~np.asarray(state.mask)) == counted(grads <= np.asarray(state.threshold))
    assert counted(np.asarray(updates)) == counted(np.asarray(state.mask))


OTHERS = {
    "structure": {"w": np.ones(3, np.float32)},
    "shape": {"w": np.ones(3, np.float32), "b": np.ones((1, 2), np.float32)},
}


@pytest.mark.parametrize("wrong", OTHERS)
@pytest.mark.parametrize("way", ["partial_backprop", "freeze_elements", "multiply_by_mask"])
def test_gradients_that_do_not_fit_the_mask(way, wrong):
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    mask = {"w": True, "b": jnp.array([True, False])}
    tx = {
        "partial_backprop": pb_jax.partial_backprop(optax.sgd(0.1), pb_jax.quantile(0.5)),
        "freeze_elements": pb_jax.freeze_elements(optax.sgd(0.1), mask),
        "multiply_by_mask": pb_jax.multiply_by_mask(mask),
    }[way]
    state = tx.init(params)
    with pytest.raises(ValueError, match=f"updates must have the .*{wrong}"):
        tx.update(OTHERS[wrong], state, params)
    if way == "partial_backprop":
        with pytest.raises(ValueError, match=f"rule_updates must have the .*{wrong}"):
            tx.update(params, state, params, rule_updates=OTHERS[wrong])


def test_nan_in_frozen_gradients_reaches_nothing():
    """At the mask step a NaN trains on; later one that is frozen stays out of norm and moments."""
    params, mask = jnp.arange(4.0), np.array([True, False, True, False])
    grads = jnp.array([1.0, np.nan, 2.0, np.inf])
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    for make, options in ((pb_jax.freeze_elements, {}), (pb_jax.compact, {"check": False})):
        tx = make(inner, mask, **options)
        updates, state = tx.update(grads, tx.init(params), params)
        assert np.isfinite(optax.tree.norm(state.inner_state))
        assert np.isfinite(updates).all()
        assert (updates != 0).tolist() == mask.tolist()
    tx = pb_jax.partial_backprop(optax.apply_if_finite(inner, 3), pb_jax.quantile(0.5))
    updates, state = tx.update(grads, tx.init(params), params)
    assert state.mask.tolist() == [False, True, False, True]
    assert np.all(updates == 0), "which optax.apply_if_finite is for"
    assert np.isfinite(state.threshold)

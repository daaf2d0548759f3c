import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pb_jax

RULES = {
    "kde_otsu": pb_jax.kde_otsu(),
    "kde_otsu by leaf": pb_jax.kde_otsu(scope="leaf"),
    "fixed_threshold": pb_jax.fixed_threshold(0.5),
    "mean_threshold": pb_jax.mean_threshold(),
    "mean_threshold by leaf": pb_jax.mean_threshold(scope="leaf"),
    "quantile": pb_jax.quantile(0.6),
    "quantile by leaf": pb_jax.quantile(0.6, scope="leaf"),
    "largest": pb_jax.quantile(0.6, largest=True),
    "largest by leaf": pb_jax.quantile(0.6, scope="leaf", largest=True),
    "random": pb_jax.random(0.6),
    "random by leaf": pb_jax.random(0.6, scope="leaf"),
    "weight_magnitude": pb_jax.weight_magnitude(0.6),
    "none": pb_jax.none(),
}


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)

    def leaf(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.exponential(size=shape), dtype)

    return {
        "conv": {"bias": leaf(7), "kernel": leaf(3, 3, 1, 7)},
        "nothing": None,
        "half": leaf(40, dtype=jnp.bfloat16),
        "steps": jnp.arange(5),
        "scalar": leaf(),
        "empty": leaf(0, 3),
    }


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_pure_and_traceable_and_keeps_the_structure(name, tree):
    rule = RULES[name]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        eager = rule(tree, tree, key=jax.random.key(1))
        jitted = jax.jit(lambda grads, key: rule(grads, grads, key=key))(tree, jax.random.key(1))
    assert jax.tree.structure(eager.mask) == jax.tree.structure(tree)
    assert jax.tree.map(jnp.shape, eager.mask) == jax.tree.map(jnp.shape, tree)
    assert all(mask.dtype == bool for mask in jax.tree.leaves(eager.mask))
    assert np.all(eager.mask["steps"]), "integers are not frozen"
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(one, other)
    if "by leaf" in name:
        assert jax.tree.structure(eager.threshold) == jax.tree.structure(tree)


def floats(tree):
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(tree) if x.dtype != jnp.int32]


def floats_of(mask, tree):
    """The mask's leaves at those of the tree that are trained."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True)
    return [np.asarray(trains) for trains, leaf in pairs if leaf.dtype != jnp.int32]


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_kde_otsu_freezes_up_to_the_threshold(tree, scope):
    selection = pb_jax.kde_otsu(scope=scope)(tree)
    threshold = selection.threshold
    kernel = threshold["conv"]["kernel"] if scope == "leaf" else threshold
    wanted = np.asarray(tree["conv"]["kernel"]) > np.asarray(kernel)
    np.testing.assert_array_equal(selection.mask["conv"]["kernel"], wanted)
    assert 0.3 < 1 - wanted.mean() < 0.95


def test_kde_otsu_by_leaf_is_the_estimate_of_each_leaf(tree):
    by_leaf = pb_jax.kde_otsu(scope="leaf", learning_rate=0.1)(tree).threshold
    alone = pb_jax.estimate_threshold(tree["conv"]["kernel"], learning_rate=0.1).threshold
    assert np.isclose(by_leaf["conv"]["kernel"], alone, rtol=1e-3)
    assert np.isnan(by_leaf["scalar"])


def test_kde_otsu_reports_its_estimate(tree):
    rule = pb_jax.kde_otsu(learning_rate=1e-3)
    estimate = pb_jax.estimate_threshold(tree, learning_rate=1e-3)
    for one, other in zip(rule(tree).estimate, estimate, strict=True):
        np.testing.assert_array_equal(one, other)
    assert rule(tree).threshold == estimate.threshold


def test_fixed_threshold_is_the_papers_comparison():
    grads = jnp.array([5e-4, -5.001e-4, 0.0, np.nan, np.inf])
    mask = pb_jax.fixed_threshold(0.5, learning_rate=1e-3)(grads).mask
    wanted = ~(np.abs(np.asarray(grads)) / np.float32(1e-3) <= np.float32(0.5))
    assert mask.tolist() == wanted.tolist()


def test_mean_threshold_is_the_mean_of_the_non_zero_ones():
    values = np.random.default_rng(0).lognormal(size=(100, 1000)).astype(np.float32)
    values[:, ::2] = 0
    threshold = pb_jax.mean_threshold(learning_rate=0.5)(jnp.asarray(values)).threshold
    assert np.isclose(threshold, 2 * values[values > 0].astype(np.float64).mean(), rtol=1e-6)


def test_mean_of_equal_values_freezes_them_all():
    assert not np.any(pb_jax.mean_threshold()(jnp.full((1001,), 0.1)).mask)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=8, max_size=8),
    st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.999]),
)
def test_quantile_freezes_the_smallest(values, frozen):
    values = np.array(values, np.float32)
    mask = np.asarray(pb_jax.quantile(frozen)(jnp.asarray(values)).mask)
    wanted = round(frozen * values.size)
    limit = np.sort(values)[wanted - 1] if wanted else -1.0
    assert mask.tolist() == (values > limit).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(0, 2.0**100, width=32, allow_subnormal=False),
            st.sampled_from([0.0, np.inf, np.nan]),
        ),
        min_size=8,
        max_size=8,
    ),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_quantile_freezes_the_largest(values, frozen):
    values = np.array(values, np.float32)
    mask = np.asarray(pb_jax.quantile(frozen, largest=True)(jnp.asarray(values)).mask)
    wanted = round(frozen * values.size)
    finite = np.sort(values[np.isfinite(values)])[::-1]
    chosen = finite[:wanted]  # fewer where too many are not finite
    expected = [bool(x in chosen) for x in values]
    assert (~mask).tolist() == expected


def test_largest_and_smallest_are_complements(tree):
    smallest = pb_jax.quantile(0.25)(tree)
    largest = pb_jax.quantile(0.75, largest=True)(tree)
    for one, other in zip(
        floats_of(smallest.mask, tree), floats_of(largest.mask, tree), strict=True
    ):
        np.testing.assert_array_equal(one, ~other)
    assert largest.threshold > smallest.threshold


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.001, 0.3, 0.7, 0.937, 0.999]))
def test_random_has_the_exact_size(seed, frozen):
    tree = [jnp.zeros((50, 20)), jnp.zeros(33)]
    mask = pb_jax.random(frozen)(tree, key=jax.random.key(seed)).mask
    assert sum(int((~m).sum()) for m in mask) == round(frozen * 1033)
    mask = pb_jax.random(frozen, scope="leaf")(tree, key=jax.random.key(seed)).mask
    assert [int((~m).sum()) for m in mask] == [round(frozen * 1000), round(frozen * 33)]


def test_random_follows_its_key():
    grads = jnp.zeros(1000)
    rule = pb_jax.random(0.5)
    first = rule(grads, key=jax.random.key(0)).mask
    assert np.all(first == rule(grads).mask), "without a key it is key 0"
    agreement = np.mean(np.asarray(first == rule(grads, key=jax.random.key(1)).mask))
    assert 0.4 < agreement < 0.6


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_random_draws_for_each_leaf_by_itself(implementation):
    key = jax.random.key(5, impl=implementation)
    tree = [jnp.zeros(shape) for shape in ((30, 4), (4,), (30, 4), (120,), (4,))]
    masks = pb_jax.random(0.5)(tree, key=key).mask
    keys = jax.random.split(key, len(tree))
    drawn = [jax.random.bits(k, leaf.shape) >> 2 for k, leaf in zip(keys, tree, strict=True)]
    middle = np.median(np.concatenate([np.asarray(bits).ravel() for bits in drawn]))
    for mask, bits in zip(masks, drawn, strict=True):
        np.testing.assert_array_equal(mask, np.asarray(bits) > middle)


def test_quantile_leaves_non_finite_gradients_training():
    grads = jnp.array([np.nan, np.inf, 1.0, -2.0, -np.inf])
    assert pb_jax.quantile(0.9)(grads).mask.tolist() == [True, True, False, False, True]


def test_quantile_in_float64_sees_what_float32_does_not():
    with jax.enable_x64(True):
        grads = jnp.array([1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1.0 + 3e-12])
        assert pb_jax.quantile(0.5)(grads).mask.tolist() == [False, False, True, True]


def test_weight_magnitude_looks_at_the_weights(tree):
    grads = jax.tree.map(jnp.zeros_like, tree)
    mask = pb_jax.weight_magnitude(0.6)(grads, tree).mask
    weights = np.concatenate([x.ravel() for x in floats(tree)])
    limit = np.sort(weights)[round(0.6 * weights.size) - 1]
    np.testing.assert_array_equal(
        mask["conv"]["kernel"], np.asarray(tree["conv"]["kernel"]) > limit
    )
    with pytest.raises(ValueError, match="weight_magnitude needs params"):
        pb_jax.weight_magnitude(0.6)(grads)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": jnp.ones(3)}, "params must have the structure of the gradients"),
        ({"x": jnp.ones(3), "y": jnp.ones(2)}, "params must have the structure of the gradients"),
        ({"a": jnp.ones(3), "b": jnp.ones(3)}, r"shape of the gradients, \(2,\) at b, got \(3,\)"),
        ({"a": jnp.ones(3, int), "b": jnp.ones(2)}, "params must be floating-point where the grad"),
    ],
)
def test_the_weights_must_be_those_of_the_gradients(params, message):
    grads = {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        pb_jax.weight_magnitude(0.5)(grads, params)


def test_weights_without_a_gradient_to_compare_do_not_count():
    grads = {"a": jnp.ones(3), "b": jnp.ones(2, int)}
    params = {"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array([9.0, 9.0])}
    mask = pb_jax.weight_magnitude(1 / 3)(grads, params).mask
    assert mask["a"].tolist() == [False, True, True]
    assert mask["b"].all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("empty", [{}, (None,), {"steps": np.arange(3)}], ids=str)
def test_a_tree_without_weights(name, empty):
    selection = RULES[name](empty, empty)
    assert jax.tree.structure(selection.mask) == jax.tree.structure(empty)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pb_jax.quantile(1.0), r"frozen must be a number below 1 and at least 0, got 1.0"),
        (lambda: pb_jax.random(-0.1), "frozen"),
        (lambda: pb_jax.weight_magnitude(2), "frozen"),
        (lambda: pb_jax.kde_otsu(scope="layer"), "scope must be 'global' or 'leaf', got 'layer'"),
        (lambda: pb_jax.fixed_threshold(-1), "t must be a number at least 0, got -1"),
        (lambda: pb_jax.fixed_threshold(1, learning_rate=0), "learning_rate"),
        (lambda: pb_jax.quantile(0.5, largest="yes"), "largest must be False or True, got 'yes'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

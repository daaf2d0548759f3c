import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pb_jax

COARSE = ("channel", "leaf")


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)

    def leaf(*shape, dtype=jnp.float32):
        # Channels differ by more than their entries do, as those of networks.
        sizes = rng.exponential(size=shape[-1:]) + 0.01
        return jnp.asarray(rng.standard_t(3, size=shape) * sizes, dtype)

    return {
        "conv": {"bias": leaf(7), "kernel": leaf(3, 3, 4, 7)},
        "dense": leaf(30, 11),
        "nothing": None,
        "frozen": optax.MaskedNode(),
        "half": leaf(8, 5, dtype=jnp.bfloat16),
        "steps": jnp.arange(5),
        "scalar": leaf(),
        "empty": leaf(0, 3),
    }


def floats(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [x.astype(np.float64) for x in leaves if x.dtype != np.int32 and x.size]


def masks_of(mask, tree):
    """The mask's leaves at those of the tree that are trained."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True)
    return [np.asarray(m) for m, leaf in pairs if leaf.dtype != jnp.int32 and leaf.size]


def groups_of(array, granularity):
    """Rows of an array (groups, entries), by definition."""
    if granularity == "leaf":
        return array.reshape(1, -1)
    return array.reshape(-1, array.shape[-1]).T if array.ndim else array.reshape(1, 1)


def means(tree, granularity):
    """Of each group: float64 mean magnitude, and size; leaf after leaf."""
    rows = [groups_of(np.abs(x), granularity) for x in floats(tree)]
    return (
        np.concatenate([row.mean(1) for row in rows]),
        np.concatenate([np.full(len(row), row.shape[1]) for row in rows]),
    )


def fates(mask, tree, granularity):
    """Whether each group trains; fails where one is cut in two."""
    rows = [groups_of(m, granularity) for m in masks_of(mask, tree)]
    for row in rows:
        assert np.all(row == row[:, :1]), "a group is cut in two"
    return np.concatenate([row[:, 0] for row in rows])


def frozen_weights(mask, tree):
    return sum(int((~m).sum()) for m in masks_of(mask, tree))


def judged(rule, grads, params=None, key=None):
    """What the rule selects: as one program, which is compiled in less time than many."""
    return jax.jit(lambda *given: rule(*given[:2], key=given[2]))(grads, params, key)


RULES = {
    "kde_otsu": pb_jax.kde_otsu(),
    "mean_threshold by leaf": pb_jax.mean_threshold(scope="leaf"),
    "quantile": pb_jax.quantile(0.6),
    "largest": pb_jax.quantile(0.6, largest=True),
    "random": pb_jax.random(0.6),
    "random by leaf": pb_jax.random(0.6, scope="leaf"),
    "weight_magnitude": pb_jax.weight_magnitude(0.6),
    "none": pb_jax.none(),
}


@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "channel") for name in RULES), ("kde_otsu", "leaf"), ("random by leaf", "leaf")],
)
def test_groups_share_their_fate_and_the_structure_stays(name, granularity, tree):
    rule = pb_jax.by_group(RULES[name], granularity)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        selection = jax.jit(lambda grads, key: rule(grads, grads, key=key))(tree, jax.random.key(1))
    assert jax.tree.structure(selection.mask) == jax.tree.structure(tree)
    assert jax.tree.map(jnp.shape, selection.mask) == jax.tree.map(jnp.shape, tree)
    assert all(mask.dtype == bool for mask in jax.tree.leaves(selection.mask))
    assert np.all(selection.mask["steps"]), "integers are not frozen"
    plain = jax.eval_shape(RULES[name], tree, tree)
    assert jax.tree.structure(selection) == jax.tree.structure(plain)
    trains = fates(selection.mask, tree, granularity)
    if name == "none":
        assert trains.all()
    elif granularity == "channel":
        assert 0 < trains.sum() < trains.size


def test_single_weights_are_the_rule_itself():
    rule = pb_jax.kde_otsu()
    assert pb_jax.by_group(rule, "element") is rule


@pytest.mark.parametrize("granularity", COARSE)
def test_thresholds_are_compared_with_mean_magnitudes(granularity, tree):
    scores, _ = means(tree, granularity)
    for t in (0.3, 0.9):
        rule = pb_jax.by_group(pb_jax.fixed_threshold(t * 2, learning_rate=0.5), granularity)
        assert fates(judged(rule, tree).mask, tree, granularity).tolist() == (scores > t).tolist()


@pytest.mark.slow
def test_the_estimate_is_that_of_the_scores(tree):
    """Shares and thresholds count weights: each has the score of its group."""
    spread = [
        np.broadcast_to(np.abs(x).mean(tuple(range(x.ndim - 1))), x.shape).astype(np.float32)
        for x in floats(tree)
    ]
    wanted = jax.jit(lambda x: pb_jax.estimate_threshold(x, learning_rate=1e-3))(spread)
    rule = pb_jax.by_group(pb_jax.kde_otsu(learning_rate=1e-3), "channel")
    selection = judged(rule, tree)
    assert int(selection.estimate.num_total) == sum(x.size for x in floats(tree))
    np.testing.assert_allclose(selection.threshold, wanted.threshold, rtol=1e-4)
    np.testing.assert_allclose(selection.estimate.region, wanted.region, rtol=1e-4)
    scores, _ = means(tree, "channel")
    frozen = ~fates(selection.mask, tree, "channel")
    assert frozen.tolist() == (scores <= float(wanted.threshold) * 1e-3 * (1 + 1e-6)).tolist()
    assert frozen.any()


@pytest.mark.parametrize(
    ("granularity", "share"), [("channel", 0.0), ("channel", 0.3), ("leaf", 0.3)]
)
def test_quantile_freezes_up_to_the_end_of_a_group(granularity, share, tree):
    scores, sizes = means(tree, granularity)
    order = np.argsort(scores, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    wanted = np.zeros(scores.size, bool)
    wanted[order[before < round(share * sizes.sum())]] = True
    for rule, params in (
        (pb_jax.quantile(share), None),
        (pb_jax.weight_magnitude(share), tree),
    ):
        grads = tree if params is None else jax.tree.map(jnp.ones_like, tree)
        mask = judged(pb_jax.by_group(rule, granularity), grads, params).mask
        assert (~fates(mask, tree, granularity)).tolist() == wanted.tolist()


def test_zeros_belong_to_the_mean_and_groups_of_zeros_are_frozen():
    kernel = jnp.array([[0.0, 0.0, 3.0], [4.0, 0.0, 3.0]])
    rule = pb_jax.by_group(pb_jax.fixed_threshold(2.0))
    assert judged(rule, kernel).mask.tolist() == [[False, False, True]] * 2
    seen = judged(pb_jax.by_group(pb_jax.kde_otsu()), kernel).estimate
    assert int(seen.num_zero) == 2


@pytest.mark.parametrize("name", ["quantile", "kde_otsu", "mean_threshold by leaf"])
@pytest.mark.parametrize("members", [6, 256])  # XLA:CPU loses NaN in some maxima
def test_a_group_that_is_not_finite_goes_on_training(name, members):
    shape = (members, 48)
    kernel = jnp.asarray(np.random.default_rng(1).exponential(size=shape), jnp.float32)
    kernel = kernel.at[2, 3].set(np.nan).at[1, 7].set(-np.inf).at[:, 5].set(0.0)
    mask = judged(pb_jax.by_group(RULES[name]), kernel).mask
    assert np.all(mask[:, jnp.array([3, 7])])
    assert not np.any(mask[:, 5])


def test_means_neither_overflow_nor_lose_their_digits():
    large = jnp.full((64, 3), 3e38).at[:, 1].set(1e38)
    rule = pb_jax.by_group(pb_jax.fixed_threshold(2e38))
    assert rule(large).mask.tolist() == [[True, False, True]] * 64
    equal = jnp.full((1001, 2), 0.1)
    assert not np.any(pb_jax.by_group(pb_jax.fixed_threshold(np.float32(0.1)))(equal).mask)
    values = np.random.default_rng(0).lognormal(size=(3, 3, 2000, 20)).astype(np.float32)
    for granularity in COARSE:
        seen = []
        spy = pb_jax.by_group(
            lambda grads, params=None, *, key=None, seen=seen: (
                seen.append(grads),
                pb_jax.none()(grads),
            )[1],
            granularity,
        )
        spy(jnp.asarray(values))
        axes = (0, 1, 2) if granularity == "channel" else None
        wanted = np.broadcast_to(values.astype(np.float64).mean(axes), values.shape)
        np.testing.assert_allclose(seen[0], wanted, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw(key, share, scope, granularity):
    return pb_jax.by_group(pb_jax.random(share, scope), granularity)(BLANK, key=key).mask


BLANK = {
    "a": jnp.zeros((3, 3, 2, 8)),
    "b": jnp.zeros((20, 5)),
    "c": jnp.zeros(7),
    "d": jnp.zeros(()),
}
SIZES = {"channel": [18] * 8 + [20] * 5 + [1] * 8, "leaf": [144, 100, 7, 1]}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.3, 0.77]), st.sampled_from(COARSE))
def test_random_comes_as_near_to_the_share_as_whole_groups_allow(seed, share, granularity):
    mask = draw(jax.random.key(seed), share, "global", granularity)
    trains = fates(mask, BLANK, granularity)
    sizes = np.array(SIZES[granularity])
    wanted, got = round(share * sizes.sum()), int(sizes[~trains].sum())
    assert frozen_weights(mask, BLANK) == got
    sums = {0}
    for size in SIZES[granularity]:
        sums |= {before + size for before in sums}
    assert abs(got - wanted) == min(abs(total - wanted) for total in sums)


def test_random_gives_every_channel_the_same_chance():
    keys = jax.random.split(jax.random.key(0), 300)
    rule = pb_jax.by_group(pb_jax.random(0.5))
    leaves = {"a": jnp.zeros((9, 16)), "b": jnp.zeros(16)}  # 8 of each are half of the weights
    masks = jax.jit(jax.vmap(lambda key: rule(leaves, key=key).mask))(keys)
    first = np.asarray(masks["a"])[:, 0]
    assert np.all(first.sum(1) == 8)
    assert np.all(np.abs(first.mean(0) - 0.5) < 0.15)
    assert len(np.unique(first, axis=0)) > 50


def test_random_can_freeze_a_leaf_larger_than_the_share():
    keys = jax.random.split(jax.random.key(0), 100)
    masks = jax.vmap(lambda key: draw(key, 0.5, "global", "leaf"))(keys)
    frozen = 1 - np.asarray(masks["a"], float)[:, 0, 0, 0, 0].mean()
    assert 0.1 < frozen < 0.9


def test_random_by_leaf_takes_its_share_of_each():
    mask = draw(jax.random.key(3), 0.6, "leaf", "channel")
    counts = [int((~m).sum()) for m in masks_of(mask, BLANK)]
    assert counts == [18 * 5, 20 * 3, 4, 1]


@pytest.mark.slow
def test_random_follows_its_key():
    grads = jnp.zeros((5, 1000))
    rule = pb_jax.by_group(pb_jax.random(0.5))
    first = judged(rule, grads, key=jax.random.key(0)).mask
    assert np.all(first == judged(rule, grads).mask), "without a key it is key 0"
    agreement = np.mean(np.asarray(first == judged(rule, grads, key=jax.random.key(1)).mask))
    assert 0.4 < agreement < 0.6


def test_a_rule_that_tells_entries_apart_is_settled_by_the_first():
    def rule(grads, params=None, *, key=None):
        del params, key
        size = grads.size
        return pb_jax.Selection(jnp.arange(size).reshape(grads.shape) % 3 == 0, jnp.nan)

    assert pb_jax.by_group(rule)(jnp.ones((2, 4))).mask.tolist() == [[True, False, False, True]] * 2


@pytest.mark.parametrize("name", ["kde_otsu", "random", "random by leaf"])
@pytest.mark.parametrize("empty", [{}, (None,), {"steps": np.arange(3)}], ids=str)
def test_a_tree_without_weights(name, empty):
    selection = pb_jax.by_group(RULES[name], "channel")(empty, empty)
    assert jax.tree.structure(selection.mask) == jax.tree.structure(empty)


def test_in_a_transformation_frozen_channels_stay():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    grads = {"kernel": jnp.ones((4, 3)) * jnp.array([1.0, 2.0, 3.0]), "bias": jnp.full(3, 9.0)}
    tx = pb_jax.partial_backprop(optax.adam(0.1), pb_jax.by_group(pb_jax.quantile(0.4)))
    updates, state = tx.update(grads, tx.init(params), params)
    assert optax.tree.get(state, "mask")["kernel"].tolist() == [[False, False, True]] * 4
    assert (
        np.asarray(optax.apply_updates(params, updates)["kernel"] == 1).tolist()
        == [[True, True, False]] * 4
    )


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="granularity must be 'element' or 'channel' or 'leaf', got"
    ):
        pb_jax.by_group(pb_jax.none(), "row")
    with pytest.raises(TypeError, match="rule must be callable"):
        pb_jax.by_group("quantile")
    with pytest.raises(ValueError, match="weight_magnitude needs params"):
        pb_jax.by_group(pb_jax.weight_magnitude(0.5))(jnp.ones((2, 2)))

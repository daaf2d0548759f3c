"""Gradients split over eight devices: the same bits as on one, and none of them is gathered."""

import itertools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pb_jax
from tests.programs import collectives
from tests.test_rules import RULES

GROUPED = {
    f"{name}, {granularity}": pb_jax.by_group(RULES[name], granularity)
    for name in ("kde_otsu", "quantile by leaf", "mean_threshold", "random", "weight_magnitude")
    for granularity in ("channel", "leaf")
}
FAST = [
    ("kde_otsu", "split", "explicit"),
    ("mean_threshold", "split", "auto"),
    ("mean_threshold, channel", "both", "auto"),
    ("mean_threshold, leaf", "split", "auto"),
    ("random", "split", "auto"),
    ("random, channel", "both", "auto"),
]

# Axes of the mesh, and how the leaves lie on it.
LAYOUTS = {
    "data parallel": ({"data": 8}, {}),
    "split": (
        {"fsdp": 8},
        {
            "kernel": P("fsdp"),
            "conv": P(None, None, None, "fsdp"),
            "dense": P(None, "fsdp"),
            "bias": P("fsdp"),
        },
    ),
    "both": (
        {"data": 4, "fsdp": 2},
        {"kernel": P(None, ("data", "fsdp")), "conv": P(None, None, "data", "fsdp")},
    ),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def cases(names):
    """Each name on each mesh; a few of them are fast."""
    return [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product(names, LAYOUTS, KINDS)
    ]


def gradients(seed=0):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return (rng.lognormal(0, 2, shape) * rng.choice([-1, 1, 1, 0], shape)).astype(np.float32)

    grads = {
        "kernel": leaf(128, 48),
        "conv": leaf(3, 3, 8, 64),
        "dense": 4 * leaf(48, 96),  # finite and of another mean magnitude: one group is frozen
        "bias": leaf(40),  # not as many as there are channels, whose sums are exchanged
        "scalar": leaf(),
        "steps": np.arange(3),
        "none": None,
    }
    grads["kernel"][3, :3] = np.nan, np.inf, -np.inf
    return grads


def on_mesh(tree, layout, kind):
    """The arrays on eight devices; what the layout does not name, lies whole on each of them."""
    axes, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(KINDS[kind],) * len(axes))

    def place(path, leaf):
        spec = specs.get(getattr(path[-1], "key", None), P()) if np.ndim(leaf) else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_split_alike(one, other):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        alike = a.sharding.is_equivalent_to(b.sharding, b.ndim)
        assert alike, f"{jax.tree_util.keystr(path)}: {a.sharding}, {b.sharding}"


def assert_nothing_gathered(compiled, tree):
    """Neither a leaf nor a device's part of a kernel is sent anywhere, nor their sum."""
    sizes = {leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim}
    part = min(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1) // 8
    for moved in collectives(compiled):
        assert moved.size not in sizes, moved
        assert moved.size < part or moved.operation == "all-reduce", moved


@pytest.mark.parametrize(("name", "layout", "kind"), cases({**RULES, **GROUPED}))
def test_a_rule_decides_as_on_one_device(name, layout, kind):
    rule = {**RULES, **GROUPED}[name]

    @jax.jit
    def decide(grads, key):
        return rule(grads, grads, key=key)

    grads, key = gradients(), jax.random.key(1)
    spread = on_mesh(grads, layout, kind)
    compiled = decide.lower(spread, key).compile()
    selection = compiled(spread, key)
    assert_same_bits(decide(grads, key), selection)
    assert_split_alike(selection.mask, spread)
    assert_nothing_gathered(compiled, spread)
    if name != "none":
        assert 0 < pb_jax.frozen_fraction(selection.mask) < 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("kde_otsu", "random, channel") else pytest.mark.slow
        )
        for name in {**RULES, **GROUPED}
    ],
)
def test_within_shard_map_each_device_goes_by_what_it_holds(name, monkeypatch):
    monkeypatch.setattr("pb_jax.magnitudes._IN_CACHE", 50)  # several pieces of each leaf
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rule, key = {**RULES, **GROUPED}[name], jax.random.key(1)
    whole = {name: leaf for name, leaf in gradients().items() if name in ("kernel", "bias")}

    def decide(grads, key):
        return rule(grads, grads, key=key).mask

    specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
    masks = jax.jit(jax.shard_map(decide, mesh=mesh, **specs))(whole, key)
    decide = jax.jit(decide)
    for i in range(8):
        part, own = (
            jax.tree.map(lambda leaf, i=i: np.split(np.asarray(leaf), 8)[i], tree)
            for tree in (whole, masks)
        )
        assert_same_bits(decide(part, key), own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_jit_around_it(kind):
    grads = gradients()
    spread = on_mesh(grads, "split", kind)
    rule = pb_jax.quantile(0.5)
    selection = rule(spread)
    assert_same_bits(rule(grads), selection)
    assert_split_alike(selection.mask, spread)
    packed = pb_jax.pack_mask(selection.mask)
    assert_same_bits(selection.mask, pb_jax.unpack_mask(packed))
    assert pb_jax.mask_summary(selection.mask) == pb_jax.mask_summary(rule(grads).mask)
    assert pb_jax.zero_gradient_fraction(spread) == pb_jax.zero_gradient_fraction(grads)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_thresholds_of_many_gradients(seed, kind):
    """To the bit, also where programs differ: small leaves are put together on one device only."""
    rng = np.random.default_rng(seed)
    shapes = [(16, int(rng.integers(1, 40))) for _ in range(40)] + [(512, 256)]
    scale = 10.0 ** rng.integers(-12, 12)
    grads = {
        str(i): (rng.lognormal(0, rng.random() * 3, shape) * scale).astype(np.float32)
        for i, shape in enumerate(shapes)
    }
    mesh = jax.make_mesh((8,), ("x",), axis_types=(KINDS[kind],))
    spread = jax.device_put(grads, NamedSharding(mesh, P("x")))
    for rule in (pb_jax.kde_otsu(), pb_jax.mean_threshold(), pb_jax.by_group(pb_jax.kde_otsu())):
        decide = jax.jit(rule)
        assert_same_bits(decide(grads)[:2], decide(spread)[:2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_transformation_trains_as_on_one_device(layout, kind):
    tx = optax.inject_hyperparams(
        lambda learning_rate: pb_jax.partial_backprop(
            optax.adamw(learning_rate),
            rule=pb_jax.kde_otsu(learning_rate=learning_rate),
            start_step=1,
            refresh_every=2,
            stop_step=5,
        )
    )(learning_rate=optax.linear_schedule(1e-2, 1e-3, 10))
    params = {k: v for k, v in gradients(1).items() if k not in ("steps", "kernel")}

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    one, several = params, on_mesh(params, layout, kind)
    states = tx.init(one), tx.init(several)
    program = None
    for i in range(3):
        grads = {k: v for k, v in gradients(10 + i).items() if k in params}
        one, first = step(one, states[0], grads)
        given = several, states[1], on_mesh(grads, layout, kind)
        program = program or step.lower(*given).compile()
        several, second = step(*given)
        states = first, second
        assert_same_bits(first.inner_state.mask, second.inner_state.mask)
        assert_same_bits(first.inner_state.threshold, second.inner_state.threshold)
        for tree in (second.inner_state.mask, *optax.tree.get_all_with_path(second, "mu")[0][1:]):
            assert_split_alike(tree, several)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert_nothing_gathered(program, several)
    assert 0 < pb_jax.frozen_fraction(states[1].inner_state.mask) < 1

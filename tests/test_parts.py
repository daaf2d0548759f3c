"""`compact` where parameters are split over devices: each keeps the state of its own entries."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pb_jax
from pb_jax.parts import PartIndices
from tests.test_sharding import (
    KINDS,
    LAYOUTS,
    assert_nothing_gathered,
    assert_same_bits,
    gradients,
    on_mesh,
)

CASES = [
    pytest.param(layout, kind, marks=() if (layout, kind) == ("both", "explicit") else slow)
    for slow in [pytest.mark.slow]
    for layout in LAYOUTS
    for kind in KINDS
]


def problem():
    params = {name: leaf for name, leaf in gradients(1).items() if name not in ("steps", "none")}
    params["kernel"] = np.nan_to_num(params["kernel"])
    params["whole"], params["frozen"] = params["kernel"].copy(), params["kernel"].copy()
    rng = np.random.default_rng(0)
    mask = {name: rng.random(np.shape(leaf)) < 0.2 for name, leaf in params.items()}
    mask["conv"][..., :8] = False  # one device has nothing to train,
    mask["bias"][:5] = True  # another all that it has
    mask["whole"], mask["frozen"] = True, False
    return params, mask


def test_what_a_traced_parameter_says():
    """Along explicit axes how it is split, along automatic ones nothing: all devices hold all."""
    params, mask = {"w": np.ones((16, 8), np.float32)}, {"w": np.arange(128).reshape(16, 8) % 5 < 1}
    tx = pb_jax.compact(optax.adam(0.1), mask, check=False)
    for kind, axis_type in KINDS.items():
        mesh = jax.make_mesh((8,), ("fsdp",), (axis_type,))
        split = jax.device_put(params, NamedSharding(mesh, P("fsdp")))
        wanted = tx.init(split)
        assert isinstance(wanted.indices["w"], PartIndices)
        with jax.set_mesh(mesh):
            state = jax.jit(tx.init)(split)
            abstract = jax.eval_shape(tx.init, split)
            assert jax.tree.structure(abstract) == jax.tree.structure(state)
            assert isinstance(state.indices["w"], PartIndices) == (kind == "explicit")
            if kind == "explicit":
                assert_same_bits(state, wanted)
            updates = [jax.jit(tx.update)(split, s, split)[0]["w"] for s in (state, wanted)]
        assert_same_bits(*updates)
        assert np.count_nonzero(updates[0]) == 26


def some_gradients(step, params):
    rng = np.random.default_rng(step)
    return {
        name: rng.normal(size=np.shape(leaf)).astype(np.float32) for name, leaf in params.items()
    }


def assert_close(one, other):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_the_updates_of_one_device(layout, kind):
    params, mask = problem()
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    dense, small = pb_jax.freeze_elements(inner, mask), pb_jax.compact(inner, mask, check=False)

    @jax.jit
    def one_step(params, state, grads):
        updates, state = dense.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def small_step(params, state, grads):
        updates, after = small.update(grads, state, params)
        return (
            optax.apply_updates(params, updates),
            pb_jax.apply_compact(inner, grads, state, params)[0],
            after,
        )

    one, several = params, on_mesh(params, layout, kind)
    dense_state, state = dense.init(one), small.init(several)
    program = None
    for i in range(3):
        grads = some_gradients(i, params)
        one, dense_state = one_step(one, dense_state, grads)
        given = several, state, on_mesh(grads, layout, kind)
        program = program or small_step.lower(*given).compile()
        several, placed, state = small_step(*given)
        assert_close(several, placed)
    assert_close(one, several)
    for name in params:
        trains = np.broadcast_to(mask[name], np.shape(params[name]))
        np.testing.assert_array_equal(np.asarray(several[name])[~trains], params[name][~trains])
    assert_nothing_gathered(program, several)

    moments = optax.tree.get(state, "mu")
    for name, where in state.indices.items():
        assert isinstance(where, PartIndices) == (name in LAYOUTS[layout][1])
        if isinstance(where, PartIndices):
            assert where.positions.sharding.shard_shape(where.shape)[0] == where.size // 8
            alike = moments[name].sharding.is_equivalent_to(where.positions.sharding, 1)
            assert alike, moments[name].sharding
            assert where.size != params[name].size
            assert where.size < 0.5 * params[name].size or name == "bias"

    back = pb_jax.expand_state(inner, state, several)
    assert_close(dense_state.inner_state, back)
    again = pb_jax.compact_state(inner, back, mask, several, check=False)
    assert_same_bits(again, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_states_with_a_history_of_each_entry(kind):
    params, mask = problem()
    several = on_mesh(params, "split", kind)
    inner = optax.lbfgs(1e-2, memory_size=3, linesearch=None)
    dense = pb_jax.freeze_elements(inner, mask)
    grads = [some_gradients(i, params) for i in range(2)]
    state = dense.init(params)
    for each in grads:
        _, state = jax.jit(dense.update)(each, state, params)
    found = []
    for arrays, given in (
        (params, state.inner_state),
        (several, on_mesh_like(state.inner_state, kind)),
    ):
        small = pb_jax.compact_state(inner, given, mask, arrays, check=False)
        found.append(pb_jax.expand_state(inner, small, arrays))
    assert isinstance(small.indices["kernel"], PartIndices)
    assert_same_bits(*found)


def on_mesh_like(state, kind):
    """A state on the mesh; axes of its own come first."""
    return jax.tree.map(lambda leaf: on_mesh({"x": leaf}, "split", kind)["x"], state)

"""Less traffic: in data-parallel training only what trains is exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import pb_jax
from tests.programs import reduced_bytes


def problem():
    rng = np.random.default_rng(0)
    params = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(30, 50)) / 5, jnp.float32)},
        "bias": jnp.zeros(50),
        "last": jnp.asarray(rng.normal(size=(50, 10)) / 5, jnp.float32),
        "frozen": jnp.asarray(rng.normal(size=(10, 10)) / 5, jnp.float32),
    }
    mask = jax.tree.map(lambda p: rng.permutation(p.size).reshape(p.shape) % 5 == 0, params)
    mask["frozen"] = np.zeros((10, 10), bool)
    batch = (
        jnp.asarray(rng.normal(size=(64, 30)), jnp.float32),
        jnp.asarray(rng.normal(size=(64, 10)), jnp.float32),
    )
    return params, mask, batch


def loss_fn(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["bias"])
    return jnp.mean((hidden @ params["last"] @ params["frozen"] - targets) ** 2)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_a_step_reduces_what_trains_and_makes_the_same_updates(kind):
    params, mask, batch = problem()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    inner = optax.chain(optax.clip_by_global_norm(0.1), optax.amsgrad(1e-2))
    dense, small = pb_jax.freeze_elements(inner, mask), pb_jax.compact(inner, mask)

    def over_devices(gradients):
        specs = {"in_specs": (P(), P(), P("data")), "out_specs": P()}
        return jax.shard_map(gradients, mesh=mesh, **specs)

    def own_gradients(params, batch):
        own = jax.lax.pcast(params, "data", to="varying")
        return jax.grad(loss_fn)(own, batch)

    def whole(params, state, batch):
        return jax.lax.pmean(own_gradients(params, batch), "data")

    def trainable(params, state, batch):
        grads = own_gradients(params, batch)
        return jax.lax.pmean(pb_jax.compact_gradients(grads, state), "data")

    def full_step(params, state, batch):
        updates, state = dense.update(over_devices(whole)(params, state, batch), state, params)
        return optax.apply_updates(params, updates), state

    def small_step(params, state, batch):
        grads = over_devices(trainable)(params, state, batch)
        return pb_jax.apply_compact(inner, grads, state, params)

    everywhere = jax.sharding.NamedSharding(mesh, P())
    found, bytes_moved = {}, {}
    for name, step, tx in (("full", full_step, dense), ("compact", small_step, small)):
        arrays = jax.device_put((params, tx.init(params)), everywhere)
        split = jax.device_put(batch, jax.sharding.NamedSharding(mesh, P("data")))
        compiled = jax.jit(step).lower(*arrays, split).compile()
        bytes_moved[name] = reduced_bytes(compiled)
        for _ in range(5):
            arrays = compiled(*arrays, split)
        found[name] = jax.device_get(arrays[0])
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert bytes_moved["full"] == 4 * weights, "the count misses something"
    assert bytes_moved["compact"] <= 0.25 * bytes_moved["full"]
    assert bytes_moved["compact"] == 4 * sum(np.sum(leaf) for leaf in jax.tree.leaves(mask))
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.any(found["compact"]["bias"] != 0), "something trained"

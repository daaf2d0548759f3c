import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx

import pb_jax
from pb_jax.checks import check_number
from pb_jax.files import write_json


def test_the_library_imports_jax_optax_and_numpy_only():
    script = (
        "import sys, jax, optax, numpy\n"
        "before = set(sys.modules)\n"
        "from pb_jax import *\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'jax', 'optax', 'numpy'}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "['pb_jax']"


def test_every_public_name_is_there_and_documented():
    for name in pb_jax.__all__:
        assert getattr(pb_jax, name).__doc__, name


def steps_of(tx, loss, params):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    return state


def test_trees_of_nnx_and_linen():
    tx = pb_jax.partial_backprop(optax.adamw(1e-3), rule=pb_jax.quantile(0.5), start_step=2)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)

    graph, params = nnx.split(nnx.Linear(4, 5, rngs=nnx.Rngs(0)))
    state = steps_of(tx, lambda p: jnp.sum(nnx.merge(graph, p)(x) ** 2), params)
    assert type(state.mask) is type(params)
    assert 0.4 < float(pb_jax.frozen_fraction(state.mask)) < 0.6
    assert set(pb_jax.mask_summary(state.mask).leaves) == {"bias", "kernel"}

    layer = linen.Dense(5)
    params = layer.init(jax.random.key(0), x)
    state = steps_of(tx, lambda p: jnp.sum(jnp.asarray(layer.apply(p, x)) ** 2), params)
    assert set(pb_jax.mask_summary(state.mask).leaves) == {"params.bias", "params.kernel"}


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5], "b": (float("inf"),)})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"a": [None, 1.5], "b": [None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_checks_take_numbers_of_every_kind():
    check_number("x", jnp.float32(0.5), above=0)
    check_number("x", jnp.array(3), whole=True, least=3)
    jax.jit(lambda x: check_number("x", x, above=0))(-1.0)

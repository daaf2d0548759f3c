"""What a user may write, for type checkers: run by `python -m tests.matrix`, never imported."""

from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax

import pb_jax
from pb_jax import MaskSummary, PartialBackpropState, Rule, Selection, kde_otsu
from pb_jax.errors import UserError

Params = dict[str, jax.Array]
STEPS = 500


def loss(params: Params, batch: jax.Array) -> jax.Array:
    return jnp.mean((batch @ params["w"] + params["b"]) ** 2)


def optimizer(rule: Rule | None = None) -> optax.GradientTransformation:
    chosen: Rule = rule if rule is not None else kde_otsu(learning_rate=1e-3)
    return pb_jax.partial_backprop(optax.adam(1e-3), rule=chosen, start_step=2 * STEPS)


@jax.jit
def step(params: Params, state: Any, batch: jax.Array) -> tuple[Params, Any]:
    grads = jax.grad(loss)(params, batch)
    updates, state = optimizer().update(grads, state, params)
    moved: Any = optax.apply_updates(params, updates)
    return moved, state


def look(state: PartialBackpropState) -> float:
    summary = pb_jax.mask_summary(state.mask)
    assert_type(summary, MaskSummary)
    return float(pb_jax.frozen_fraction(state.mask))


def every_second(grads: Any, params: Any = None, *, key: jax.Array | None = None) -> Selection:
    del params, key
    mask = jax.tree.map(lambda g: jnp.arange(g.size).reshape(g.shape) % 2 == 0, grads)
    return Selection(mask, jnp.nan, None)


def by_hand(grads: Params) -> optax.GradientTransformation:
    selection = pb_jax.quantile(0.8)(grads)
    assert_type(selection, Selection)
    return pb_jax.freeze_elements(optax.sgd(0.1), selection.mask)


def main() -> None:
    params = {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}
    tx = optimizer(every_second)
    state = tx.init(params)
    try:
        params, state = step(params, state, jnp.ones((3, 4)))
    except UserError as error:
        print(error, Path("log.txt"))

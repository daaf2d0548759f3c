"""A rule of your own: `python -m examples.custom_rule`.

A rule is a pure function of gradients and parameters that returns a `Selection`. To rank other
scores, hand them to an existing rule; to decide differently, return your own mask.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import pb_jax


def saliency(frozen: float) -> pb_jax.Rule:
    """Freeze the share whose loss to first order changes least if the weight is removed, |w g|."""
    smallest = pb_jax.quantile(frozen)

    def rule(grads: Any, params: Any = None, *, key: jax.Array | None = None) -> pb_jax.Selection:
        return smallest(jax.tree.map(jnp.multiply, grads, params), key=key)

    return rule


def except_vectors(rule: pb_jax.Rule) -> pb_jax.Rule:
    """Let biases and the scales of normalisation train, whatever `rule` says about them."""

    def train_vectors(grads: Any, params: Any = None, *, key: jax.Array | None = None):
        found = rule(grads, params, key=key)
        mask = jax.tree.map(lambda g, trains: trains | (g.ndim < 2), grads, found.mask)
        return found._replace(mask=mask)

    return train_vectors


x = jax.random.normal(jax.random.key(0), (256, 20))
y = jnp.sin(x @ jax.random.normal(jax.random.key(1), (20, 5)))
params = {"w": jax.random.normal(jax.random.key(2), (20, 5)) / 5, "b": jnp.zeros(5)}
rules = {
    "gradient": pb_jax.quantile(0.6),
    "saliency": saliency(0.6),
    "saliency, biases train": except_vectors(saliency(0.6)),
    "saliency, whole channels": pb_jax.by_group(saliency(0.6), "channel"),
}


def loss(params):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


def train(rule: pb_jax.Rule):
    """Thirty steps in full and as many under the mask; returns the mask and the loss."""
    tx = pb_jax.partial_backprop(optax.adam(1e-2), rule=rule, start_step=30)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (trained, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=60)
    return optax.tree.get(state, "mask"), loss(trained)


masks = {}
for name, rule in rules.items():
    masks[name], value = train(rule)
    print(f"{name:26} {float(pb_jax.frozen_fraction(masks[name])):.1%} frozen, loss {value:.3f}")

"""Your own loop, plain jax and optax: `python -m examples.optax_loop`; a few seconds.

A small network for scikit-learn's digits: 100 steps in full, then a mask, then 300 under it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import pb_jax

pixels, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(np.asarray(pixels) / 16, jnp.float32), jnp.asarray(labels)
test = slice(1500, None)
keys = jax.random.split(jax.random.key(0), 2)
params = {
    "hidden": {"w": jax.random.normal(keys[0], (64, 128)) / 8, "b": jnp.zeros(128)},
    "output": {"w": jax.random.normal(keys[1], (128, 10)) / 11, "b": jnp.zeros(10)},
}
tx = pb_jax.partial_backprop(
    optax.adamw(1e-3), rule=pb_jax.kde_otsu(learning_rate=1e-3), start_step=100
)


def logits(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["output"]["w"] + params["output"]["b"]


def loss(params, images, labels):
    scores = logits(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


@jax.jit
def step(params, state, batch):
    grads = jax.grad(loss)(params, images[batch], labels[batch])
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


state = tx.init(params)
rng = np.random.default_rng(0)
for number in range(400):
    if number == 100:
        before = params
    params, state = step(params, state, rng.integers(0, 1500, 100))

mask, after = optax.tree.get(state, "mask"), params
accuracy = float((logits(params, images[test]).argmax(-1) == labels[test]).mean())
print(pb_jax.mask_summary(mask))
print(f"threshold {optax.tree.get(state, 'threshold'):.3g}, accuracy {accuracy:.1%}")

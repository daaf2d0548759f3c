"""equinox: `python -m examples.equinox_model`. The arrays of the module are the parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import pb_jax

pixels, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(np.asarray(pixels, np.float32) / 16), jnp.asarray(labels)

model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
tx = pb_jax.partial_backprop(optax.adamw(1e-3), rule=pb_jax.quantile(0.8), start_step=100)
# Functions and sizes of the module become None, which pb_jax passes through as optax does.
state = tx.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def step(model, state, images, labels):
    def loss(model):
        scores = jax.vmap(model)(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    grads = eqx.filter_grad(loss)(model)
    updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state


rng = np.random.default_rng(0)
for number in range(400):
    if number == 100:
        before = eqx.filter(model, eqx.is_inexact_array)
    batch = rng.integers(0, 1500, 100)
    model, state = step(model, state, images[batch], labels[batch])

mask, after = optax.tree.get(state, "mask"), eqx.filter(model, eqx.is_inexact_array)
accuracy = float((jax.vmap(model)(images[1500:]).argmax(-1) == labels[1500:]).mean())
print(pb_jax.mask_summary(mask))
print(f"accuracy {accuracy:.1%}")

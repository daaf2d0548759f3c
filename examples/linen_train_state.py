"""flax.linen: `python -m examples.linen_train_state`. The transformation is `TrainState`'s `tx`."""

import jax
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import pb_jax

pixels, labels = load_digits(return_X_y=True)
images, labels = np.asarray(pixels, np.float32) / 16, np.asarray(labels)


class Network(linen.Module):
    """Two dense layers."""

    @linen.compact
    def __call__(self, images):
        """Logits (N, 10) of images (N, 64)."""
        return linen.Dense(10)(linen.relu(linen.Dense(128)(images)))


model = Network()
tx = pb_jax.partial_backprop(optax.adamw(1e-3), rule=pb_jax.quantile(0.8), start_step=100)
params = model.init(jax.random.key(0), images[:1])["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def step(state, images, labels):
    def loss(params):
        scores = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


rng = np.random.default_rng(0)
for number in range(400):
    if number == 100:
        before = state.params
    batch = rng.integers(0, 1500, 100)
    state = step(state, images[batch], labels[batch])

mask, after = optax.tree.get(state.opt_state, "mask"), state.params
scores = state.apply_fn({"params": state.params}, images[1500:])
accuracy = float((scores.argmax(-1) == labels[1500:]).mean())
print(pb_jax.mask_summary(mask))
print(f"accuracy {accuracy:.1%}")

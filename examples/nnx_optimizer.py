"""flax.nnx: `python -m examples.nnx_optimizer`. The transformation goes into `nnx.Optimizer`."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import pb_jax

pixels, labels = load_digits(return_X_y=True)
images, labels = np.asarray(pixels, np.float32) / 16, np.asarray(labels)


class Network(nnx.Module):
    """Two dense layers with batch norm between them."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, rngs=rngs)
        self.output = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        """Logits (N, 10) of images (N, 64)."""
        return self.output(jax.nn.relu(self.norm(self.hidden(images))))


model = Network(nnx.Rngs(0))
tx = pb_jax.partial_backprop(optax.adamw(1e-3), rule=pb_jax.quantile(0.8), start_step=100)
# Parameters only: the running statistics of batch norm are none, and go on moving.
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    def loss(model):
        scores = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


rng = np.random.default_rng(0)
for number in range(400):
    if number == 100:
        before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    batch = rng.integers(0, 1500, 100)
    step(model, optimizer, images[batch], labels[batch])

mask = optax.tree.get(optimizer.opt_state, "mask")
after = nnx.state(model, nnx.Param)
model.eval()
accuracy = float((model(images[1500:]).argmax(-1) == labels[1500:]).mean())
print(pb_jax.mask_summary(mask))
print(f"accuracy {accuracy:.1%}")

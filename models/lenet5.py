"""LeNet-5 for MNIST: channels 8 and 32, dense layers 120, 84 and 10, ReLU; 79,214 parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Network, conv, dense, max_pool


class LeNet5(Network):
    """Two 5 x 5 convolutions without padding, each with 2 x 2 max pooling, and three dense layers.

    Source: the paper gives the channels; the dense sizes are those of LeCun et al. (1998).
    """

    channels = 1
    height_width = 28
    any_size = False
    flattened = {"fc1": (32, 4, 4)}  # noqa: RUF012

    def __init__(
        self, num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.dtype = dtype
        self.conv1 = conv(1, 8, 5, use_bias=True, **computed)
        self.conv2 = conv(8, 32, 5, use_bias=True, **computed)
        self.fc1 = dense(512, 120, **computed)
        self.fc2 = dense(120, 84, **computed)
        self.fc3 = dense(84, num_classes, dtype=jnp.float32, precision=precision, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images (N, 28, 28, 1)."""
        x = self.checked(images).astype(self.dtype)
        # Pooling first: the same, with a quarter of the ReLUs.
        x = jax.nn.relu(max_pool(self.conv1(x)))
        x = jax.nn.relu(max_pool(self.conv2(x)))
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(self.fc1(x))
        x = jax.nn.relu(self.fc2(x))
        return self.fc3(x.astype(jnp.float32))

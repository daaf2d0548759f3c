"""VGG19 for CIFAR: batch norm, convolution biases, one dense layer; 20,040,522 parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import BatchNorm, Network, conv, dense, global_avg_pool, max_pool

_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class VGG19(Network):
    """Sixteen 3 x 3 convolutions in five stages, each stage ending in 2 x 2 max pooling.

    Images larger than 32 x 32 leave more than one position, which are averaged.

    Source: Simonyan and Zisserman (2015), in the form of kuangliu/pytorch-cifar, whose indices
    `features` keeps.
    """

    def __init__(
        self, num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.dtype = dtype
        layers: list[Any] = []
        inputs = 3
        for stage in _STAGES:
            for outputs in stage:
                layers += [
                    conv(inputs, outputs, 3, padding=1, use_bias=True, **computed),
                    BatchNorm(outputs, rngs=rngs),
                    jax.nn.relu,
                ]
                inputs = outputs
            layers.append(max_pool)
        self.features = nnx.List(layers)
        self.classifier = dense(
            inputs, num_classes, dtype=jnp.float32, precision=precision, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images (N, H, W, 3), H, W >= 32."""
        x = self.checked(images).astype(self.dtype)
        for layer in self.features:
            x = layer(x)
        return self.classifier(global_avg_pool(x))

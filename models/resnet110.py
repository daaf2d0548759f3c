"""ResNet-110 for CIFAR, with parameter-free shortcuts; 1,727,962 parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import materialised
from models.layers import BatchNorm, Network, conv, dense, global_avg_pool


class Block(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Where the block changes the shape, the shortcut takes every second pixel and adds channels of
    zeros on both sides ("option A").
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        precision: Any,
    ) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.stride = stride
        self.added = outputs - inputs
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, **computed)
        self.bn1 = BatchNorm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, **computed)
        self.bn2 = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H / stride, W / stride, outputs)."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            half = self.added // 2
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (half, self.added - half)))
        return materialised(jax.nn.relu(y + x))


class ResNet110(Network):
    """One convolution, then three stages of eighteen blocks with 16, 32 and 64 channels.

    Source: He et al. (2016), section 4.2, in the names of akamaster/pytorch_resnet_cifar10.
    """

    height_width = 8

    def __init__(
        self, num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.dtype = dtype
        self.conv1 = conv(3, 16, 3, padding=1, **computed)
        self.bn1 = BatchNorm(16, rngs=rngs)
        self.layer1 = nnx.List([Block(16, 16, 1, **computed) for _ in range(18)])
        self.layer2 = nnx.List(
            [Block(16, 32, 2, **computed), *(Block(32, 32, 1, **computed) for _ in range(17))]
        )
        self.layer3 = nnx.List(
            [Block(32, 64, 2, **computed), *(Block(64, 64, 1, **computed) for _ in range(17))]
        )
        self.linear = dense(64, num_classes, dtype=jnp.float32, precision=precision, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images (N, H, W, 3), H, W >= 8."""
        x = self.checked(images).astype(self.dtype)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = block(x)
        return self.linear(global_avg_pool(x))

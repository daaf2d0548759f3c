"""DenseNet-121 for CIFAR: growth 12, bottleneck 4 x, compression 0.5; 1,000,618 parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import materialised
from models.layers import BatchNorm, Network, avg_pool, conv, dense, global_avg_pool

_GROWTH = 12
_BOTTLENECK = 4 * _GROWTH
_BLOCKS = (6, 12, 24, 16)


class Bottleneck(nnx.Module):
    """A 1 x 1 and a 3 x 3 convolution, each after batch norm and ReLU, put before their input."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.bn1 = BatchNorm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, _BOTTLENECK, 1, **computed)
        self.bn2 = BatchNorm(_BOTTLENECK, rngs=rngs)
        self.conv2 = conv(_BOTTLENECK, _GROWTH, 3, padding=1, **computed)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H, W, growth + inputs)."""
        y = self.conv1(jax.nn.relu(self.bn1(x)))
        y = self.conv2(jax.nn.relu(self.bn2(y)))
        return materialised(jnp.concatenate([y, x], -1))


class Transition(nnx.Module):
    """Half the channels and half the size."""

    def __init__(
        self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None:
        self.bn = BatchNorm(inputs, rngs=rngs)
        self.conv = conv(inputs, outputs, 1, dtype=dtype, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H / 2, W / 2, outputs)."""
        return avg_pool(self.conv(jax.nn.relu(self.bn(x))))


class DenseNet121(Network):
    """Four dense blocks of 6, 12, 24 and 16 bottlenecks; no pooling in front of them.

    Source: Huang et al. (2017), in the form and names of kuangliu/pytorch-cifar.
    """

    height_width = 8

    def __init__(
        self, num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None:
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.dtype = dtype
        width = 2 * _GROWTH
        self.conv1 = conv(3, width, 3, padding=1, **computed)
        for stage, length in enumerate(_BLOCKS, 1):
            block = [Bottleneck(width + i * _GROWTH, **computed) for i in range(length)]
            setattr(self, f"dense{stage}", nnx.List(block))
            width += length * _GROWTH
            if stage < len(_BLOCKS):
                setattr(self, f"trans{stage}", Transition(width, width // 2, **computed))
                width //= 2
        self.bn = BatchNorm(width, rngs=rngs)
        self.linear = dense(width, num_classes, dtype=jnp.float32, precision=precision, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images (N, H, W, 3), H, W >= 8."""
        x = self.conv1(self.checked(images).astype(self.dtype))
        for stage in range(1, len(_BLOCKS) + 1):
            for bottleneck in getattr(self, f"dense{stage}"):
                x = bottleneck(x)
            if stage < len(_BLOCKS):
                x = getattr(self, f"trans{stage}")(x)
        return self.linear(global_avg_pool(jax.nn.relu(self.bn(x))))

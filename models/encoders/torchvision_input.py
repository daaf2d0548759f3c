"""Pictures as torchvision's ImageNet networks take them."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def normalised(images: jax.Array, dtype: DTypeLike) -> jax.Array:
    """uint8 pixels, divided by 255, less ImageNet's mean, divided by its standard deviation.

    Example:
        >>> normalised(jnp.zeros((1, 1, 1, 3), jnp.uint8), jnp.float32).round(2)
        Array([[[[-2.12, -2.04, -1.8 ]]]], dtype=float32)
    """
    mean, std = jnp.array(_MEAN), jnp.array(_STD)
    return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)

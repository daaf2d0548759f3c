"""From stored pixels to what a network sees."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


def normalize(images: "ArrayLike", mean: Sequence[float], std: Sequence[float]) -> "Array":
    """Return (images / 255 - mean) / std; jittable, so that arrays travel and rest as uint8.

    Args:
        images: uint8 (..., H, W, C), values 0 to 255.
        mean: C numbers, in units of full brightness.
        std: C positive numbers, in the same units.

    Returns:
        float32 (..., H, W, C).

    Raises:
        ValueError: mean or std is not one number for each channel.

    Example:
        >>> import numpy as np
        >>> float(normalize(np.full((1, 1, 1), 255, np.uint8), (0.5,), (0.25,))[0, 0, 0])
        2.0
    """
    import jax.numpy as jnp  # a second, so not at the top

    images = jnp.asarray(images)
    channels = images.shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != channels:
            raise ValueError(f"{name} must hold {channels} numbers, one a channel; got {value}")
    mean_array = jnp.asarray(mean, jnp.float32)
    std_array = jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255.0 - mean_array) / std_array

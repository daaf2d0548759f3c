"""What all encoders share."""

import abc
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import compiler_options


class Encoder(nnx.Module):
    """A module from pictures to a grid of features.

    Attributes:
        image_size: S, height and width of the pictures.
        grid: (h, w), of the features.
        channels: C, of the features.
        frozen: whether its weights come from a file and stay as they are.
        dtype: in which it computes.
        precision: of convolutions and matrix products, as in `jax.lax.Precision`.
    """

    image_size: int
    grid: tuple[int, int]
    channels: int
    frozen: bool

    def __init__(self, *, dtype: DTypeLike, precision: Any) -> None:
        self.dtype = jnp.dtype(dtype)
        self.precision = precision

    @abc.abstractmethod
    def __call__(self, images: jax.Array) -> jax.Array:
        """Features, float32 (N, h, w, C), of uint8 images (N, S, S, 3)."""

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for the architecture and its present weights."""
        about = (type(self).__name__, self.image_size, *self.grid, self.channels)
        digest = hashlib.sha256(repr((*about, self.dtype.name, str(self.precision))).encode())
        state = nnx.to_flat_state(nnx.state(self))
        for path, variable in sorted(state, key=lambda item: repr(item[0])):
            value = np.asarray(variable[...])
            digest.update(repr((path, value.shape, value.dtype.str)).encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def checked(self, images: jax.Array) -> jax.Array:
        """`images`, if their shape and dtype are what this encoder takes."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != jnp.uint8:
            raise ValueError(
                f"{type(self).__name__}: expected uint8 images (N, {size}, {size}, 3); "
                f"found {images.dtype} {images.shape}"
            )
        return images


def compiled(encoder: Encoder) -> Callable[[Any], jax.Array]:
    """`encoder` as a compiled function of images; its weights are those of this moment.

    Example:
        >>> from models.encoders import create
        >>> encode = compiled(create("small", rngs=nnx.Rngs(0)))
        >>> encode(np.zeros((2, 48, 48, 3), np.uint8)).shape
        (2, 6, 6, 128)
    """
    encoder = nnx.clone(encoder)
    encoder.eval()
    graph, state = nnx.split(encoder)

    # The weights are an argument: as constants they would be compiled into the program.
    def encode(state: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(images)

    program = jax.jit(encode, compiler_options=compiler_options(jax.default_backend()))
    return lambda images: program(state, images)

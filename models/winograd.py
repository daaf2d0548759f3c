"""3 x 3 convolutions with 16 products where 36 are usual, for CPU: Winograd's F(2 x 2, 3 x 3).

Each tile of 2 x 2 results is computed from 4 x 4 inputs: inputs and kernel are transformed by sums
and differences, multiplied place by place, which over all tiles and channels is 16 matrix products,
and transformed back. No constant but 1 and 1/2 takes part, so that the results are about as near to
the exact ones as those of the plain sum. Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (CVPR 2016), section 4.1, where the transformations are B^T, G and A^T.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def convolution(padded: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """Images (N, H, W, features) from padded ones (N, H + 2, W + 2, C); H and W are even.

    Args:
        padded: the images.
        kernel: (3, 3, C, features), of their dtype.
        precision: of the products.

    Example:
        >>> convolution(jnp.ones((1, 4, 6, 2)), jnp.ones((3, 3, 2, 5)))[0, 0, 0]
        Array([18., 18., 18., 18., 18.], dtype=float32)
    """
    return _convolution(padded, kernel, "tpi,tio->tpo", precision)


def image_gradient(padded: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """The gradient (N, H, W, C) of `convolution` by its images.

    Args:
        padded: the cotangent (N, H + 2, W + 2, features), with zeros around it.
        kernel: the convolution's, (3, 3, C, features).
        precision: of the products.

    Example:
        >>> image_gradient(jnp.ones((1, 4, 6, 5)), jnp.ones((3, 3, 2, 5)))[0, 0, 0]
        Array([45., 45.], dtype=float32)
    """
    # Its channels change places in the products, not before: moving them would take longer.
    return _convolution(padded, kernel[::-1, ::-1], "tpo,tio->tpi", precision)


def _convolution(padded: jax.Array, kernel: jax.Array, places: str, precision: Any) -> jax.Array:
    n, height, width, _ = padded.shape
    inputs, weights = lax.optimization_barrier((_inputs(padded), _both(_of_kernel, kernel)))
    weights = weights.reshape(16, *kernel.shape[2:])
    products = jnp.einsum(places, inputs, weights, precision=precision)
    tiles = (n, height // 2 - 1, width // 2 - 1)
    products = lax.optimization_barrier(products).reshape(4, 4, *tiles, -1)
    results = _both(_to_results, products)  # (2, 2, N, H / 2, W / 2, features)
    return results.transpose(2, 3, 0, 4, 1, 5).reshape(n, height - 2, width - 2, -1)


def kernel_gradient(padded: jax.Array, cotangent: jax.Array, precision: Any = None) -> jax.Array:
    """The gradient (3, 3, C, features) of `convolution` by its kernel.

    Args:
        padded: what `convolution` was given.
        cotangent: of what it returned.
        precision: of the products.

    Example:
        >>> kernel_gradient(jnp.ones((1, 4, 6, 1)), jnp.ones((1, 2, 4, 1)))[0, 0]
        Array([[8.]], dtype=float32)
    """
    n, height, width, features = cotangent.shape
    tiles = cotangent.reshape(n, height // 2, 2, width // 2, 2, features)
    results = _both(_from_results, tiles.transpose(2, 4, 0, 1, 3, 5)).reshape(16, -1, features)
    inputs, results = lax.optimization_barrier((_inputs(padded), results))
    products = jnp.einsum("tpi,tpo->tio", inputs, results, precision=precision)
    products = lax.optimization_barrier(products)
    return _both(_to_kernel, products.reshape(4, 4, -1, features))


def _inputs(padded: jax.Array) -> jax.Array:
    """B^T d B of every tile: (16, tiles, C)."""
    parts = [b for a in _of_inputs(padded, 1) for b in _of_inputs(a, 2)]
    return jnp.stack([part.reshape(-1, padded.shape[3]) for part in parts])


def _of_inputs(x: jax.Array, axis: int) -> Sequence[jax.Array]:
    end = x.shape[axis] - 3  # tiles begin at every other place
    a, b, c, d = (lax.slice_in_dim(x, i, end + i, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d


def _both(transform: Callable[..., Sequence[jax.Array]], x: jax.Array) -> jax.Array:
    """A transformation of the first axis and of the second."""
    rows = [jnp.stack(transform(*(x[i, j] for j in range(x.shape[1])))) for i in range(x.shape[0])]
    return jnp.stack(transform(*rows))


def _of_kernel(a: jax.Array, b: jax.Array, c: jax.Array) -> Sequence[jax.Array]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _to_kernel(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> Sequence[jax.Array]:
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _to_results(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> Sequence[jax.Array]:
    return a + b + c, b - c - d


def _from_results(a: jax.Array, b: jax.Array) -> Sequence[jax.Array]:
    return a, a + b, a - b, -b

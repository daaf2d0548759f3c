"""One filter a channel: stock on accelerators, and on CPU as a sum of shifted images.

XLA:CPU computes grouped convolutions slowly; sums over the taps of the kernel are many times as
fast, as they run along the channels. With a stride of 2 the taps read one of four images, of the
even or odd rows and columns.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution of each channel with a filter of its own, "SAME" as TensorFlow pads.

    Args:
        x: images (N, H, W, C).
        kernel: (height, width, 1, C), of the dtype of the images.
        stride: down and across.

    Returns:
        Images (N, ceil(H / stride), ceil(W / stride), C).

    Example:
        >>> depthwise(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)))[0, :, :, 0]
        Array([[4., 6., 6., 4.],
               [6., 9., 9., 6.],
               [6., 9., 9., 6.],
               [4., 6., 6., 4.]], dtype=float32)
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_sum, stride=stride),
        default=functools.partial(_stock, stride=stride),
    )


def _stock(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    n, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    around = lax.padtype_to_pads((height, width), kernel.shape[:2], (stride, stride), "SAME")
    # Written once, with whole strides: XLA would pad anew for each tap.
    (top, bottom), (left, right) = around
    bottom += -(top + height + bottom) % stride
    right += -(left + width + right) % stride
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    phases = {
        (i, j): lax.optimization_barrier(padded[:, i::stride, j::stride])
        for i in range(stride)
        for j in range(stride)
    }
    total = jnp.zeros((n, rows, columns, channels), x.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            phase = phases[i % stride, j % stride]
            down, across = i // stride, j // stride
            total += phase[:, down : down + rows, across : across + columns] * kernel[i, j, 0]
    return total

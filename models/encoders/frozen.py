"""Building blocks of frozen encoders: convolutions with a bias, made of a file's arrays.

Batch norm with fixed statistics is an affine map, so it goes into the convolution before it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import convolution
from models.depthwise import depthwise

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
Padding = str | tuple[tuple[int, int], tuple[int, int]]


class Frozen(nnx.Variable):
    """A weight that no training touches."""


class Conv(NamedTuple):
    """Where a convolution finds its weights, and what it does.

    Attributes:
        name: of the convolution in the file.
        norm: name of the batch norm that follows, or None: the convolution has a bias.
        size: height and width of the kernel.
        inputs: channels.
        outputs: channels.
        stride: down and across.
        padding: "SAME" (TensorFlow's), or zeros (top, bottom), (left, right).
        depthwise: one filter a channel.
    """

    name: str
    norm: str | None
    size: int
    inputs: int
    outputs: int
    stride: int = 1
    padding: Padding = "SAME"
    depthwise: bool = False

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """(height, width, inputs, outputs), as in `lax.conv_general_dilated`."""
        return (self.size, self.size, 1 if self.depthwise else self.inputs, self.outputs)


def needed(convs: Iterable[Conv], *, torch: bool) -> dict[str, tuple[int, ...]]:
    """Name to shape of all arrays in the file.

    Args:
        convs: the convolutions.
        torch: kernels are (outputs, inputs, height, width), as in PyTorch.

    Example:
        >>> needed([Conv("c", None, 3, 8, 16)], torch=True)
        {'c.weight': (16, 8, 3, 3), 'c.bias': (16,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in convs:
        height, width, inputs, outputs = conv.kernel_shape
        kernel = (outputs, inputs, height, width) if torch else conv.kernel_shape
        shapes[f"{conv.name}.weight"] = kernel
        if conv.norm is None:
            shapes[f"{conv.name}.bias"] = (outputs,)
        else:
            shapes.update({f"{conv.norm}.{part}": (outputs,) for part in _BATCH_NORM})
    return shapes


class FrozenConv(nnx.Module):
    """A convolution and its bias, with weights that stay as they are.

    Args:
        conv: what it is.
        weights: name to float32 array; with the names and shapes of `needed`.
        torch: kernels are (outputs, inputs, height, width).
        epsilon: of the batch norm.
        dtype: in which it computes.
        precision: as in `jax.lax.Precision`.
    """

    def __init__(
        self,
        conv: Conv,
        weights: Mapping[str, np.ndarray],
        *,
        torch: bool,
        epsilon: float = 1e-5,
        dtype: DTypeLike,
        precision: Any,
    ) -> None:
        kernel = weights[f"{conv.name}.weight"].astype(np.float64)
        if torch:
            kernel = kernel.transpose(2, 3, 1, 0)
        if conv.norm is None:
            bias = weights[f"{conv.name}.bias"]
        else:
            scale, shift, mean, var = (weights[f"{conv.norm}.{part}"] for part in _BATCH_NORM)
            factor = scale / np.sqrt(var.astype(np.float64) + epsilon)
            kernel = kernel * factor
            bias = shift - mean * factor
        self.kernel = Frozen(jnp.asarray(kernel, jnp.float32))
        self.bias = Frozen(jnp.asarray(bias, jnp.float32))
        self.stride = conv.stride
        self.padding = conv.padding
        self.depthwise = conv.depthwise
        self.dtype = dtype
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H', W', outputs)."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        if self.depthwise:
            return depthwise(x, kernel, self.stride) + bias
        strides = (self.stride, self.stride)
        numbers = ("NHWC", "HWIO", "NHWC")
        return bias + convolution(
            x, kernel, strides, self.padding, dimension_numbers=numbers, precision=self.precision
        )

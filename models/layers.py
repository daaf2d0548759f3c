"""What the networks share: PyTorch's initialisation, batch norm and pooling, on NHWC images."""

import abc
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.convolution import convolution, materialised
from models.trained_channels import for_channels, pays

_BLOCK = 64  # terms that a dense layer adds up in one go


class Network(nnx.Module):
    """What `models.create` returns: a module from images to float32 logits."""

    channels = 3
    height_width = 32
    any_size = True
    # Dense layers that follow a flattening, with the (C, H, W) that PyTorch flattens.
    flattened: dict[str, tuple[int, int, int]] = {}  # noqa: RUF012

    @abc.abstractmethod
    def __init__(
        self, num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> None: ...

    @abc.abstractmethod
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images."""

    def train_channels(self, trained: Mapping[str, np.ndarray]) -> None:
        """Leave the weight gradients of other output channels out from now on, where that pays.

        Args:
            trained: for kernels by name ("conv1.kernel") the output channels that train, int32,
                sorted and distinct. Gradients of the others are zero, or what they are: they must
                not be used. Kernels that are not named are left as they are.
        """
        for path, layer in nnx.iter_modules(self):
            channels = trained.get(".".join(map(str, (*path, "kernel"))))
            if channels is None or not isinstance(layer, nnx.Conv | nnx.Linear):
                continue
            if not pays(channels.size, layer.kernel.shape[-1]):
                continue
            if isinstance(layer, nnx.Conv):
                layer.conv_general_dilated = for_channels(layer.conv_general_dilated, channels)
            else:
                layer.dot_general = for_channels(layer.dot_general, channels)

    def over_devices(self, axes: tuple[str, ...]) -> None:
        """Normalise with statistics of the whole batch from now on, in `jax.shard_map`.

        Args:
            axes: of the mesh, over which batches are split evenly.
        """
        for _, layer in nnx.iter_modules(self):
            if isinstance(layer, BatchNorm):
                layer.axes = axes

    def checked(self, images: jax.Array) -> jax.Array:
        """`images`, if their shape and dtype are what this network takes."""
        size = self.height_width
        name = type(self).__name__
        fits = images.ndim == 4 and images.shape[3] == self.channels
        if self.any_size:
            fits = fits and min(images.shape[1:3]) >= size
            expected = f"(N, H, W, {self.channels}), H and W at least {size}"
        else:
            fits = fits and images.shape[1:3] == (size, size)
            expected = f"(N, {size}, {size}, {self.channels})"
        if not fits:
            raise ValueError(f"{name}: expected images {expected}; found shape {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{name}: expected normalised float images; found {images.dtype}")
        return images


def uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for kernels and biases of dense and convolutional layers."""
    bound = 1 / math.sqrt(fan_in)

    def initializer(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        # The generator is compiled for each size, slowly: few sizes, cut to shape.
        size = math.prod(shape)
        drawn = jax.random.uniform(key, (1 << (size - 1).bit_length(),), dtype, -bound, bound)
        return jax.lax.slice(drawn, (0,), (size,)).reshape(shape)

    return initializer


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    use_bias: bool = False,
    dtype: DTypeLike,
    precision: Any,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square 2-D convolution, padded by `padding` zeros on all four sides."""
    initializer = uniform(inputs * size * size)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        (stride, stride),
        padding=((padding, padding), (padding, padding)),
        use_bias=use_bias,
        dtype=dtype,
        precision=precision,
        kernel_init=initializer,
        bias_init=initializer,
        conv_general_dilated=convolution,
        rngs=rngs,
    )


def dense(
    inputs: int, outputs: int, *, dtype: DTypeLike, precision: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer with bias."""
    initializer = uniform(inputs)
    return nnx.Linear(
        inputs,
        outputs,
        dtype=dtype,
        precision=precision,
        kernel_init=initializer,
        bias_init=initializer,
        dot_general=_product,
        rngs=rngs,
    )


def _product(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **options: Any
) -> jax.Array:
    """The matrix product of a dense layer; a long one as a sum of products of 64 rows each.

    XLA:CPU adds up a product's terms one by one. The rounding of 512 of them puts a unit that is
    nearly zero on the other side of its ReLU than in PyTorch, and a training on another way.
    """
    features = kernel.shape[0]
    special = any(option is not None for option in options.values())
    if special or x.ndim != 2 or features <= _BLOCK or features % _BLOCK:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **options)
    blocks = x.reshape(-1, features // _BLOCK, _BLOCK)
    kernels = kernel.reshape(features // _BLOCK, _BLOCK, -1)
    return jnp.sum(jnp.einsum("nbk,bkf->bnf", blocks, kernels, precision=precision), 0)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, as PyTorch's `BatchNorm2d` does it.

    The batch is normalised with its biased variance, the running variance averages the unbiased
    one. Statistics are float32 whatever the dtype of the input.
    """

    momentum = 0.9
    epsilon = 1e-5
    axes: tuple[str, ...] = ()
    """Of the mesh, in `jax.shard_map`: the devices along them have parts of the batch."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        del rngs
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised `x`, of the same shape and dtype."""
        x = materialised(x)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x)
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        shift = self.bias[...] - mean * factor
        return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = math.prod(x.shape[:-1]) * jax.lax.axis_size(self.axes)
        if count < 2:
            raise ValueError(
                f"batch norm needs more than one value a channel in training; found shape {x.shape}"
            )
        # Two sums straight from x: nothing of its size is written, here or in the gradient.
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axes, dtype=jnp.float32)
        mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axes)
        if self.axes:
            mean, mean_square = jax.lax.pmean((mean, mean_square), self.axes)
        var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
        keep = self.momentum
        fresh_mean, fresh_var = jax.lax.stop_gradient((mean, var * (count / (count - 1))))
        # Not [...] = : that compares shardings, which takes ever longer in a long trace.
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * fresh_mean)
        self.var.set_value(keep * self.var[...] + (1 - keep) * fresh_var)
        return mean, var


def _windows(x: jax.Array) -> jax.Array:
    """2 x 2 windows, (N, H/2, 2, W/2, 2, C); an odd last row or column is left out."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The largest of every 2 x 2 window; of equal ones the first gets the gradient."""
    return jnp.max(_windows(x), (2, 4))


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    x, y = saved
    windows = _windows(x)
    taken = jnp.zeros(y.shape, bool)
    parts = []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        largest = (windows[:, :, i, :, j] == y) & ~taken
        taken |= largest
        parts.append(jnp.where(largest, cotangent, 0))
    n, height, width, channels = y.shape
    rows = [jnp.stack(parts[:2], 3), jnp.stack(parts[2:], 3)]
    dx = jnp.stack(rows, 2).reshape(n, 2 * height, 2 * width, channels)
    odd = [(0, full - even) for full, even in zip(x.shape, dx.shape, strict=True)]
    return (jnp.pad(dx, odd),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array) -> jax.Array:
    """The mean of every 2 x 2 window."""
    return jnp.mean(_windows(x), (2, 4))


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean image, (N, C), as float32."""
    return jnp.mean(x, (1, 2), dtype=jnp.float32)

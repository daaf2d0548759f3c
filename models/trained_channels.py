"""Weight gradients for the output channels that train, where the others are known to be frozen.

A mask that is known only at run time saves no arithmetic; one that is known when the step is
compiled does. Of a layer's three products (forward, gradient of the input, gradient of the kernel)
it shortens the third.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models.convolution import materialised

# Found by timing layers on CPU: with three quarters of the channels there was nothing to gain.
_MOST = 0.5


def pays(trained: int, channels: int) -> bool:
    """Whether leaving out the frozen channels' weight gradients pays: where at most half train.

    Example:
        >>> pays(32, 64), pays(33, 64)
        (True, False)
    """
    return trained <= _MOST * channels


def for_channels(
    product: Callable[..., jax.Array], trained: np.ndarray
) -> Callable[..., jax.Array]:
    """A convolution or matrix product whose kernel gradient is of some output channels only.

    Its value and the gradient of its input are what they are. The kernel's gradient is computed
    for the output channels `trained`, and is exactly zero for all others. Reverse-mode
    differentiation only.

    Args:
        product: `product(x, kernel, ...)`, such as `models.convolution.convolution`, or
            `jax.lax.dot_general` as a dense layer calls it: the last axis of its value is that of
            the kernel.
        trained: int32 (channels that train,), sorted and distinct; known when the program is
            compiled.

    Example:
        >>> kernel = jnp.ones((2, 3))
        >>> product = for_channels(jnp.dot, np.array([1], np.int32))
        >>> print(jax.grad(lambda kernel: jnp.sum(product(jnp.ones((5, 2)), kernel)))(kernel))
        [[0. 5. 0.]
         [0. 5. 0.]]
    """

    def narrowed(x: jax.Array, kernel: jax.Array, *arguments, **options) -> jax.Array:
        def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return product(x, kernel, *arguments, **options)

        def forward(x: jax.Array, kernel: jax.Array):
            x = materialised(x)
            return whole(x, kernel), (x, kernel)

        def backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array):
            x, kernel = saved
            # What is not used of the other's products is dead code, and left out by XLA.
            (for_x,) = jax.vjp(lambda x: whole(x, kernel), x)[1](cotangent)
            if not trained.size:
                return for_x, jnp.zeros_like(kernel)
            part, seen = _picked(kernel, trained), _picked(cotangent, trained)
            (gradient,) = jax.vjp(lambda part: whole(x, part), part)[1](seen)
            return for_x, _spread(gradient, trained, kernel.shape[-1])

        narrow = jax.custom_vjp(whole)
        narrow.defvjp(forward, backward)
        return narrow(x, kernel)

    return narrowed


def _picked(array: jax.Array, channels: np.ndarray) -> jax.Array:
    return jnp.take(array, channels, axis=-1, mode="clip")


def _spread(part: jax.Array, channels: np.ndarray, count: int) -> jax.Array:
    """Zeros (..., count) with `part` at `channels`; taken, as on CPU to scatter is slower.

    >>> _spread(jnp.array([1.0, 2.0]), np.array([0, 3]), 4)
    Array([1., 0., 0., 2.], dtype=float32)
    """
    source = np.full(count, channels.size, np.int32)  # a channel of zeros behind the others
    source[channels] = np.arange(channels.size)
    return _picked(jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, 1)]), source)

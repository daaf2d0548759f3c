"""One convolution for all platforms: the stock one, and on CPU one that XLA runs faster.

XLA:CPU fuses cheap element-wise work into each of its consumers, without limit: in a residual
network every weight gradient recomputes the chain of all blocks before it. Optimization barriers
on what a convolution reads and on its cotangent stop that, where they outlive XLA's early passes:
compile the step with `compiler_options("cpu")`. Weight gradients, 1 x 1 kernels, tiny images and
images of few channels are matrix products here, because XLA's own ways to compute them are slow;
3 x 3 kernels with many channels go Winograd's way (`models.winograd`), which has fewer products.

Newer versions of XLA can hand convolutions and products to oneDNN, PyTorch's library for x86. The
same options ask for it where it is there and JAX's persistent compilation cache is not in use,
which cannot keep such programs.

The choice is made when a program is lowered, so that one traced program serves every platform.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models import winograd

_NUMBERS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC
# Where XLA's own convolutions are slower than matrix products of patches; found by timing.
_TINY_IMAGE = 4  # pixels
_LARGE_KERNEL = 9  # more taps than this
_COLOURS = 4  # channels of an image, at most
_FEW_CHANNELS = 8  # so few that neighbours are computed together
_GATHERED = 64  # channels at most of weight gradients that are one product for all taps
_SOME_CHANNELS = 12  # of weight gradients that are products in spite of a large kernel
_WINOGRAD_CHANNELS = 64  # both in and out, and of one of them twice as many
_WINOGRAD_BESIDE_ONE_DNN = 256  # the larger of both, for all but weight gradients
_PIECE = 1_900_000  # bytes of a batch that are best worked on at a time, near what a cache holds
_FEWEST_PIECES = 2.5  # a batch that would make fewer is left whole
_PIECES = 64  # at most: each takes some time to begin with

_ONE_DNN: dict[str, str | bool] = {
    "xla_cpu_experimental_onednn_custom_call": True,
    # Sums are all that is left to the library that would take convolutions and products first.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def compiler_options(platform: str) -> dict[str, str | bool]:
    """What to give to `jax.jit(compiler_options=...)` for a step that trains these networks.

    Args:
        platform: "cpu", or any other that JAX knows.

    Returns:
        Names of options and their values. Where JAX's persistent compilation cache is set, which
        has to be done before, oneDNN is not asked for: steps on x86 take longer then.

    Example:
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options("cpu"))
        >>> int(step(1))
        2
    """
    if platform == "cpu":
        # The pass removes optimization barriers before fusion.
        options: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return options | _ONE_DNN if _asks_for_one_dnn() else options
    return {}


def _asks_for_one_dnn() -> bool:
    config: Any = jax.config  # whose attributes are not declared
    cached = config.jax_enable_compilation_cache and config.jax_compilation_cache_dir
    return not cached and _has_one_dnn()


@functools.cache
def _has_one_dnn() -> bool:
    """Whether XLA:CPU takes the options, and calls oneDNN then."""
    image = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)
    stock = functools.partial(_stock, window=_Window((1, 1), ((1, 1), (1, 1)), None))
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            lowered = jax.jit(stock, compiler_options=_ONE_DNN).lower(image, kernel)
            return "__onednn$convolution" in str(lowered.compile().as_text())
    except RuntimeError:  # no such option, or no CPU beside another platform
        return False


def materialised(x: jax.Array) -> jax.Array:
    """`x`; on CPU both it and its cotangent are written to memory, not recomputed where used.

    Example:
        >>> materialised(jnp.ones(2))
        Array([1., 1.], dtype=float32)
    """
    return _materialised(x)


@jax.custom_vjp
def _materialised(x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=_identity)


_materialised.defvjp(lambda x: (_materialised(x), None), lambda _, g: (_materialised(g),))


def _identity(x: jax.Array) -> jax.Array:
    return x


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nnx.Conv(conv_general_dilated=...)`; see the module.

    The same up to rounding. Anything but a plain 2-D convolution of NHWC images with HWIO kernels
    (dilated, grouped, with an explicit sharding or element type) is left to the stock one.
    Reverse-mode differentiation only.

    Args:
        lhs: images (N, H, W, C).
        rhs: kernel (height, width, C, features), of the dtype of the images.
        window_strides: down and across.
        padding: "SAME", "VALID" or (low, high) pairs.
        lhs_dilation: as in `lax.conv_general_dilated`, like all that follow.
        rhs_dilation: see there.
        dimension_numbers: see there.
        feature_group_count: see there.
        precision: see there.
        **others: see there.

    Returns:
        Images (N, H', W', features).

    Example:
        >>> images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
        >>> numbers = ("NHWC", "HWIO", "NHWC")
        >>> convolution(images, kernel, (1, 1), "VALID", dimension_numbers=numbers).shape
        (1, 2, 2, 5)
    """
    plain = (
        lhs.ndim == 4
        and feature_group_count == 1
        and all(set(d or (1,)) == {1} for d in (lhs_dilation, rhs_dilation))
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _NUMBERS
        and all(value is None for value in others.values())
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            **others,
        )
    strides = (window_strides[0], window_strides[1])
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return _convolution(lhs, rhs, _Window(strides, ((top, bottom), (left, right)), precision))


class _Window(NamedTuple):
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu, window=window),
        default=functools.partial(_stock, window=window),
    )


def _forward(x: jax.Array, kernel: jax.Array, window: _Window) -> tuple[jax.Array, Any]:
    x = materialised(x)
    return _convolution(x, kernel, window), (x, kernel)


def _backward(
    window: _Window, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        *saved,
        cotangent,
        cpu=functools.partial(_cpu_gradients, window=window),
        default=functools.partial(_stock_gradients, window=window),
    )


_convolution.defvjp(_forward, _backward)


def _stock(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        dimension_numbers=_NUMBERS,
        precision=window.precision,
    )


def _stock_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(functools.partial(_stock, window=window), x, kernel)[1](cotangent)


@jax.named_scope("convolution")
def _cpu(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    if _suits_winograd(x, kernel, window) and _many_for_winograd(kernel):
        return winograd.convolution(_padded(x, window.padding), kernel, window.precision)
    by_patches = _one_product(x, kernel) or kernel.shape[2] <= _COLOURS
    return (_by_patches if by_patches else _stock)(x, kernel, window)


def _one_product(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether the convolution and both its gradients are best done as one matrix product."""
    return kernel.shape[:2] == (1, 1) or x.shape[1] * x.shape[2] <= _TINY_IMAGE


def _cpu_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> tuple[jax.Array, jax.Array]:
    x, cotangent = lax.optimization_barrier((x, cotangent))
    with jax.named_scope("image_gradient"):
        for_x = _image_gradient(x, kernel, cotangent, window)
    with jax.named_scope("kernel_gradient"):
        return for_x, _kernel_gradient(x, kernel, cotangent, window)


def _image_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> jax.Array:
    if _suits_winograd(x, kernel, window) and _many_for_winograd(kernel):
        around = _padded(cotangent, _turned(window.padding, kernel))
        return winograd.image_gradient(around, kernel, window.precision)
    large = kernel.shape[0] * kernel.shape[1] > _LARGE_KERNEL
    by_patches = large or _one_product(x, kernel) or kernel.shape[2] <= _COLOURS
    forward = _by_patches if by_patches else _stock
    return jax.vjp(lambda x: forward(x, kernel, window), x)[1](cotangent)[0]


def _suits_winograd(x: jax.Array, kernel: jax.Array, window: _Window) -> bool:
    """Whether tiles fill the results and the images, and there are channels enough."""
    sizes = [
        *x.shape[1:3],
        *(n + sum(p) for n, p in zip(x.shape[1:3], window.padding, strict=True)),
    ]
    return (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
        and max(kernel.shape[2:]) >= 2 * _WINOGRAD_CHANNELS
        and window.strides == (1, 1)
        and all(size % 2 == 0 for size in sizes)
        and x.dtype == jnp.float32
    )


def _many_for_winograd(kernel: jax.Array) -> bool:
    """Whether Winograd's way is faster than XLA's, which for weight gradients it always is."""
    return not _asks_for_one_dnn() or max(kernel.shape[2:]) >= _WINOGRAD_BESIDE_ONE_DNN


def _turned(
    padding: tuple[tuple[int, int], tuple[int, int]], kernel: jax.Array
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What to put around the cotangent, so that the turned kernel gives the images' gradient."""
    (top, bottom), (left, right) = padding
    down, across = kernel.shape[0] - 1, kernel.shape[1] - 1
    return (down - top, down - bottom), (across - left, across - right)


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> jax.Array:
    """The kernel's gradient as matrix products, where they are faster."""
    height, width, inputs, outputs = kernel.shape
    if _suits_winograd(x, kernel, window):
        return winograd.kernel_gradient(_padded(x, window.padding), cotangent, window.precision)
    if _one_product(x, kernel) or (1 < inputs <= _COLOURS and outputs > 2 * _FEW_CHANNELS):
        return jax.vjp(lambda kernel: _by_patches(x, kernel, window), kernel)[1](cotangent)[0]
    (top, bottom), (left, right) = window.padding
    down, across = height // 2, width // 2
    plain = (
        window.strides == (1, 1)
        and height % 2 == width % 2 == 1
        and 0 <= min(top, bottom) <= max(top, bottom) <= down
        and 0 <= min(left, right) <= max(left, right) <= across
    )
    few = height * width > _LARGE_KERNEL and min(inputs, outputs) < _SOME_CHANNELS
    if few or not plain:
        return jax.vjp(lambda kernel: _stock(x, kernel, window), kernel)[1](cotangent)[0]
    # As large as the images, which then need no padding.
    cotangent = _padded(cotangent, ((down - top, down - bottom), (across - left, across - right)))
    if inputs <= outputs:
        return _sum_of_pieces(x, cotangent, kernel, window)
    # What one sees of the other to its right, the other sees to its left.
    return _sum_of_pieces(cotangent, x, kernel, window)[::-1, ::-1].swapaxes(2, 3)


def _sum_of_pieces(a: jax.Array, b: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """`_taps` of all images, a few at a time where all of them are too many for the caches."""
    images = a.shape[0]
    best = (a.size + b.size) * a.dtype.itemsize / _PIECE
    if best < _FEWEST_PIECES or not _asks_for_one_dnn():
        return _taps(a, b, kernel, window).astype(a.dtype)
    counts = [n for n in range(1, _PIECES + 1) if images % n == 0]
    pieces = min(counts, key=lambda n: max(n / best, best / n))

    def add(total: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _taps(*piece, kernel, window), None

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(pieces, images // pieces, *x.shape[1:])

    taps = jax.eval_shape(lambda a, b: _taps(a, b, kernel, window), a, b)
    # In `jax.shard_map` a sum differs from device to device as its terms do.
    nothing = jnp.zeros_like(a, shape=taps.shape, dtype=taps.dtype)
    return lax.scan(add, nothing, (split(a), split(b)))[0].astype(a.dtype)


def _taps(a: jax.Array, b: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """For each tap of the kernel the product of `a`, moved by that much, with `b`, over all pixels.

    Args:
        a: (N, H, W, C), with the fewer channels.
        b: (N, H, W, D).
        kernel: its first two lengths, which are odd, count.
        window: its precision counts.

    Returns:
        Of the shape (height, width, C, D), float32 at least.
    """
    height, width = kernel.shape[:2]
    seen = _neighbours(a, width, 2)
    if max(a.shape[3], b.shape[3]) <= _GATHERED:
        others = [_neighbours(b, height, 1)]
    else:
        others = [-_moved(b, i - height // 2, 1) for i in range(height)]
    seen, others = lax.optimization_barrier((seen, others))
    pixels = math.prod(a.shape[:3])
    products = [
        jnp.einsum(
            "ni,no->io",
            seen.reshape(pixels, -1),
            other.reshape(pixels, -1),
            precision=window.precision,
            preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
        )
        for other in others
    ]
    taps = jnp.concatenate(products, 1).reshape(width, a.shape[3], height, b.shape[3])
    # The lower `b` lies, the higher is the tap by which `a` sees it.
    return taps.transpose(2, 0, 1, 3)[::-1]


def _neighbours(x: jax.Array, size: int, axis: int) -> jax.Array:
    """-x at each place and around it along `axis`, zeros outside: (N, H, W, size, C).

    XLA:CPU makes one loop of a concatenation that something follows, over all cores; alone, each of
    its parts is written first, and copied on one core. So both factors of a product are negated.
    """
    parts = [_moved(x, i - size // 2, axis) for i in range(size)]
    return -jnp.stack(parts, 3)


def _moved(x: jax.Array, by: int, axis: int) -> jax.Array:
    """What lies `by` places on along `axis`, height or width; zeros outside."""
    sides = [(0, 0), (0, 0)]
    sides[axis - 1] = (-by, by)
    return _padded(x, (sides[0], sides[1]))


def _by_patches(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    together = _together(x, kernel, window)
    patches = _patches(x, kernel, window, together)
    if kernel.shape[:2] != (1, 1):
        patches = lax.optimization_barrier(patches)
    band = _band(kernel, together)
    product = _product("nhwi,io->nhwo", patches, band, window)
    n, height, blocks, _ = product.shape
    return product.reshape(n, height, blocks * together, kernel.shape[3])


def _together(x: jax.Array, kernel: jax.Array, window: _Window) -> int:
    """How many neighbours in a row one row of the matrix product computes.

    They share most of what they see: fewer numbers are gathered, and with few features the product
    becomes wide enough to be fast.
    """
    width, features = kernel.shape[1], kernel.shape[3]
    results = x.shape[2] + sum(window.padding[1]) - width + 1
    if width == 1 or window.strides != (1, 1) or x.shape[3] > _FEW_CHANNELS:
        return 1
    return next(n for n in (4 if features <= _FEW_CHANNELS else 2, 2, 1) if results % n == 0)


def _band(kernel: jax.Array, together: int) -> jax.Array:
    """The matrix (inputs of `together` neighbours, their outputs)."""
    height, width, inputs, features = kernel.shape
    last = together - 1
    shifted = [jnp.pad(kernel, ((0, 0), (i, last - i), (0, 0), (0, 0))) for i in range(together)]
    return jnp.stack(shifted, 3).reshape(height * (width + last) * inputs, together * features)


def _patches(x: jax.Array, kernel: jax.Array, window: _Window, together: int = 1) -> jax.Array:
    """What each place, or `together` neighbours, sees: (N, H', W' / together, inputs)."""
    x = _padded(x, window.padding)
    height, width = kernel.shape[:2]
    across = together if together > 1 else window.strides[1]
    x = _shifted(x, width + together - 1, 2, across)
    return _shifted(x, height, 1, window.strides[0])


def _shifted(x: jax.Array, size: int, axis: int, stride: int = 1) -> jax.Array:
    """The `size` neighbours along `axis` of each place, one after the other as channels."""
    last = x.shape[axis] - size + 1
    return jnp.concatenate(
        [lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(size)], -1
    )


def _padded(x: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    """Zeros around the images; negative padding cuts off."""
    zero = jnp.zeros([], x.dtype)
    return lax.pad(x, zero, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])


def _product(spec: str, a: jax.Array, b: jax.Array, window: _Window) -> jax.Array:
    return jnp.einsum(
        spec,
        a,
        b,
        precision=window.precision,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    ).astype(a.dtype)

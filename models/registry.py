"""Networks by name."""

import difflib
from collections.abc import Callable, Collection, KeysView
from typing import Any, Protocol, TypeVar, overload

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.densenet121 import DenseNet121
from models.layers import Network
from models.lenet5 import LeNet5
from models.resnet110 import ResNet110
from models.vgg19 import VGG19
from pb_jax.errors import UserError


class Builder(Protocol):
    """What makes a network: its class, or a function with the same arguments."""

    def __call__(
        self, num_classes: int, /, *, rngs: nnx.Rngs, dtype: DTypeLike, precision: Any
    ) -> Network:
        """A network in training mode; the arguments are those of `create`."""
        ...


_Builder = TypeVar("_Builder", bound=Builder)

_NETWORKS: dict[str, Builder] = {
    "lenet5": LeNet5,
    "vgg19": VGG19,
    "resnet110": ResNet110,
    "densenet121": DenseNet121,
}

_CAPTIONER = "captioner"  # what configurations call `models.Captioner`, which is made otherwise

NAMES: KeysView[str] = _NETWORKS.keys()
"""Of the networks that `create` knows: what is registered later is among them."""


@overload
def register(name: str) -> Callable[[_Builder], _Builder]: ...
@overload
def register(name: str, build: _Builder) -> _Builder: ...
def register(name: str, build: Builder | None = None) -> Any:
    """Make a network of your own known by name: to `create`, and as `--config.model.name`.

    For `train.py`, call it in a module that the config file imports: config files themselves may
    be read more than once.

    Args:
        name: not that of another network.
        build: its class, or a function with the same arguments; left out, `register` decorates it.

    Returns:
        `build`; without it, the decorator.

    Raises:
        ValueError: there is a network of this name, or it is no name.
        TypeError: `build` cannot be called.

    Example:
        >>> from models import lenet5
        >>> @register("wide_lenet5")
        ... class WideLeNet5(lenet5.LeNet5):
        ...     "A network of your own."
        >>> type(create("wide_lenet5", rngs=nnx.Rngs(0))).__name__
        'WideLeNet5'
        >>> register("lenet5", WideLeNet5)
        Traceback (most recent call last):
        ...
        ValueError: name must not be that of another network, got 'lenet5'; there are lenet5, ...
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a string that is not empty, got {name!r}")
    if name in _NETWORKS or name == _CAPTIONER:
        raise ValueError(
            f"name must not be that of another network, got {name!r}; there are {', '.join(NAMES)}"
        )
    if build is None:
        return lambda build: register(name, build)
    if not callable(build):
        raise TypeError(f"build must be a class or a function, got {build!r}")
    _NETWORKS[name] = build
    return build


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


def unknown_name(kind: str, name: str, names: Collection[str]) -> UserError:
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

"""Weights of the PyTorch models that everyone uses, by their names there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.layers import Network
from pb_jax.errors import UserError

_TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_SHOWN = 8


def load_torch(model: Network, weights: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Replace parameters and running statistics of `model` by those of its PyTorch twin.

    The twins are VGG19 and DenseNet-121 of kuangliu/pytorch-cifar, ResNet-110 of
    akamaster/pytorch_resnet_cifar10, and a LeNet-5 of `conv1 conv2 fc1 fc2 fc3`. A common prefix
    `module.` (of `DataParallel`) is taken away; `num_batches_tracked` is ignored. The values are
    converted to float32. If anything does not fit, nothing is changed.

    Args:
        model: what `models.create` returned.
        weights: name to array, as in a `state_dict`, or the path of a .safetensors or .npz file.

    Raises:
        UserError: the file cannot be read, or names or shapes do not fit; all of them are named.

    Example:
        >>> from models import create
        >>> model, other = (create("lenet5", rngs=nnx.Rngs(seed)) for seed in (0, 1))
        >>> load_torch(model, to_torch(other))
        >>> bool((model.fc1.kernel[...] == other.fc1.kernel[...]).all())
        True
    """
    variables = _variables(model)
    shapes = {
        name: _to_torch(model, name, np.zeros(variable.shape, bool)).shape
        for name, variable in variables.items()
    }
    for name, value in fitting(weights, shapes, type(model).__name__).items():
        variables[name][...] = jnp.asarray(_from_torch(model, name, value))


def fitting(
    weights: Mapping[str, Any] | str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    network: str,
    *,
    ignored: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Read weights, and check that they are exactly those that a network needs.

    Args:
        weights: name to array, or the path of a .safetensors or .npz file. A prefix `module.` that
            all names share is taken away; `num_batches_tracked` is ignored.
        shapes: name to shape of everything that is needed.
        network: its name, for the message.
        ignored: names that begin with one of these are ignored too.

    Returns:
        Name to float32 array, for the names in `shapes`.

    Raises:
        UserError: the file cannot be read, or names or shapes do not fit; all of them are named.

    Example:
        >>> fitting({"a.weight": np.ones(2)}, {"a.weight": (2,)}, "Net")
        {'a.weight': array([1., 1.], dtype=float32)}
        >>> fitting({"a.weight": np.ones(2)}, {"a.weight": (3,)}, "Net")
        Traceback (most recent call last):
        ...
        pb_jax.errors.UserError: weights do not fit Net: wrong: a.weight has (2,) instead of (3,)
    """
    is_path = isinstance(weights, str | os.PathLike)
    found = _read(weights) if is_path else dict(weights)
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    found = {
        name: value
        for name, value in found.items()
        if name.rpartition(".")[2] != "num_batches_tracked" and not name.startswith(ignored)
    }
    problems = _listed("missing", shapes.keys() - found.keys())
    problems += _listed("unexpected", found.keys() - shapes.keys())
    converted = {}
    misshapen = []
    for name in sorted(shapes.keys() & found.keys()):
        value = np.asarray(found[name])
        if value.shape != shapes[name]:
            misshapen.append(f"{name} has {value.shape} instead of {shapes[name]}")
        elif not (np.issubdtype(value.dtype, np.number) or value.dtype == jnp.bfloat16):
            misshapen.append(f"{name} holds {value.dtype} instead of numbers")
        else:
            converted[name] = value.astype(np.float32)
    problems += _listed("wrong", misshapen)
    if problems:
        where = f"{os.fspath(weights)}: " if is_path else ""
        raise UserError(f"{where}weights do not fit {network}: {'; '.join(problems)}")
    return converted


def to_torch(model: Network) -> dict[str, np.ndarray]:
    """Parameters and running statistics of `model`, named and laid out as `load_torch` takes them.

    Example:
        >>> from models import create
        >>> weights = to_torch(create("lenet5", rngs=nnx.Rngs(0)))
        >>> weights["conv2.weight"].shape, weights["fc1.weight"].shape
        ((32, 8, 5, 5), (120, 512))
    """
    return {
        name: _to_torch(model, name, np.asarray(variable[...]))
        for name, variable in _variables(model).items()
    }


def _variables(model: Network) -> dict[str, nnx.Variable]:
    graph = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    named = {}
    for path, variable in graph:
        *parents, last = map(str, path)
        named[".".join([*parents, _TORCH.get(last, last)])] = variable
    return named


def _to_torch(model: Network, name: str, value: np.ndarray) -> np.ndarray:
    layer, _, kind = name.rpartition(".")
    if kind != "weight" or value.ndim == 1:
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if layer in model.flattened:
        channels, height, width = model.flattened[layer]
        images = value.reshape(height, width, channels, -1)
        return images.transpose(3, 2, 0, 1).reshape(value.shape[::-1])
    return value.T


def _from_torch(model: Network, name: str, value: np.ndarray) -> np.ndarray:
    layer, _, kind = name.rpartition(".")
    if kind != "weight" or value.ndim == 1:
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if layer in model.flattened:
        images = value.reshape(-1, *model.flattened[layer])
        return images.transpose(2, 3, 1, 0).reshape(value.shape[::-1])
    return value.T


def _listed(problem: str, names: Any) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{problem}: {', '.join(names[:_SHOWN])}{more}"]


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"{path}: weights must be a .npz or a .safetensors file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as weights ({error})") from error

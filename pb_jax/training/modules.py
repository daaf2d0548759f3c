"""A flax.nnx module as a pure function of two flat dicts of arrays.

Flat dicts of plain arrays are flattened by jit's C++ code: nested nnx states with their variables
would cost Python time at every step, as much as a whole step of a small network. Their keys, such
as `layers.3.kernel`, also name the leaves in checkpoints, masks and reports.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

Arrays = dict[str, jax.Array]


class Apply(Protocol):
    """`apply(params, model_state, *inputs, train=...) -> (outputs, new model_state)`."""

    def __call__(
        self,
        params: Arrays,
        model_state: Arrays,
        *inputs: jax.Array,
        train: bool,
        prepare: Callable[[Any], None] | None = None,
    ) -> tuple[Any, Arrays]:
        """Run the module; in evaluation the model state comes back as it was given.

        `prepare` is called with the module before it is trained, and may change what is static.
        """
        ...


class Functional(NamedTuple):
    """A module taken apart.

    Attributes:
        apply: the pure function.
        params: what is trained, every `nnx.Param`, in the order in which the module defines it.
        model_state: everything else: batch statistics, random streams.
        merge: from such dicts to the module in evaluation mode, for methods other than its call.
    """

    apply: Apply
    params: Arrays
    model_state: Arrays
    merge: Callable[[Arrays, Arrays], Any]


def functional(model: nnx.Module) -> Functional:
    """Take a module apart into a pure function and flat dicts of its arrays.

    Args:
        model: any module that maps arrays to arrays; its mode is set to training.

    Returns:
        A `Functional`. The arrays are the module's own: donating them leaves the module empty.

    Example:
        >>> import jax.numpy as jnp
        >>> apply, params, *_ = functional(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> list(params)
        ['kernel', 'bias']
        >>> apply(params, {}, jnp.zeros((1, 2)), train=False)[0].shape
        (1, 3)
    """
    model.eval()
    evaluating = nnx.graphdef(model)
    model.train()
    training, params, rest = nnx.split(model, nnx.Param, ...)
    param_paths = sorted((path for path, _ in nnx.to_flat_state(params)), key=_defined(model))
    rest_paths = [path for path, _ in nnx.to_flat_state(rest)]

    def state(paths: Sequence[Any], arrays: Arrays) -> Any:
        return nnx.from_flat_state([(path, arrays[dotted(path)]) for path in paths])

    def arrays(state: Any) -> Arrays:
        return {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}

    def merged(graphdef: Any, params: Arrays, model_state: Arrays) -> Any:
        return nnx.merge(graphdef, state(param_paths, params), state(rest_paths, model_state))

    def merge(params: Arrays, model_state: Arrays) -> Any:
        return merged(evaluating, params, model_state)

    def apply(
        params: Arrays,
        model_state: Arrays,
        *inputs: jax.Array,
        train: bool,
        prepare: Callable[[Any], None] | None = None,
    ) -> tuple[Any, Arrays]:
        if not train:
            return merge(params, model_state)(*inputs), model_state
        module = merged(training, params, model_state)
        if prepare is not None:
            prepare(module)
        outputs = module(*inputs)
        return outputs, arrays(nnx.split(module, nnx.Param, ...)[2])

    unordered = arrays(params)
    ordered = {dotted(path): unordered[dotted(path)] for path in param_paths}
    return Functional(apply, ordered, arrays(rest), merge)


def dotted(path: tuple[Hashable, ...]) -> str:
    """`("layers", 3, "kernel")` as `"layers.3.kernel"`."""
    return ".".join(map(str, path))


def _defined(model: nnx.Module):
    """A sort key for paths: the order in which modules assign their attributes."""

    def key(path: tuple[Hashable, ...]) -> tuple[int, ...]:
        node: Any = model
        positions = []
        for part in path:
            if isinstance(part, int):
                positions.append(part)
                node = node[part]
            else:
                positions.append(list(vars(node)).index(part))
                node = getattr(node, str(part))
        return tuple(positions)

    return key

"""Checkpoints of what trains: entries of the parameters, compact state, the mask, one bit a weight.

Under a mask frozen weights stay the same to the bit. They are written once, to a *base*, which the
checkpoints of that mask name with its fingerprint. Reading puts the two together again.

A kill at any moment leaves every checkpoint with its base: the base is on the disk before the
saving of its first checkpoint begins, and one is only removed while nothing is being saved, and if
no checkpoint on the disk and not the next one names it.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import pb_jax
from pb_jax.entries import Entries, locate, nothing_trains, pick
from pb_jax.errors import UserError
from pb_jax.files import replacing
from pb_jax.training import stored
from pb_jax.training.compact import is_compact
from pb_jax.training.step import TrainState

FOLDER = "base"
_PARAMS, _MASK = "params.", "opt_state.inner_state.mask."
_INNER = "opt_state.inner_state.inner_state"
_SHOWN = 12  # digits of a fingerprint


class Bases:
    """The files that hold frozen weights, in a folder among the checkpoints.

    A base is a .safetensors file with a leaf's frozen entries, in C order, by the leaf's name. Its
    name begins with its fingerprint: the same weights are the same file.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._checked: set[str] = set()

    def write(self, frozen: dict[str, np.ndarray]) -> dict[str, str]:
        """Write a base, where it is not there yet.

        Returns:
            Its `file` and `sha256`, by which `read` finds it.
        """
        digest = fingerprint(frozen)
        base = {"file": f"{digest[:16]}.safetensors", "sha256": digest}
        path = self.folder / base["file"]
        if digest in self._checked and path.exists():
            return base
        try:
            self.read(base)
        except UserError:  # none, or altered since an earlier start wrote it
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                safetensors().save_file(frozen, temporary)
        self._checked.add(digest)
        return base

    def read(self, base: dict[str, str]) -> dict[str, np.ndarray]:
        """The frozen entries of a base.

        Raises:
            UserError: it is missing, cannot be read, or is another one.
        """
        path, wanted = self.folder / Path(base["file"]).name, base["sha256"]  # no way out of it
        remedy = f"put back the file of fingerprint {wanted[:_SHOWN]}…, written beside it"
        if not path.exists():
            raise UserError(f"its base {path} is missing; {remedy}")
        try:
            found = safetensors().load_file(path)
        except UserError:
            raise
        except Exception as error:  # safetensors has an error of its own, not always exported
            raise UserError(f"its base {path} cannot be read ({error}); {remedy}") from error
        digest = fingerprint(found)
        if digest != wanted:
            raise UserError(
                f"its base {path} was altered: its fingerprint is {digest[:_SHOWN]}…, "
                f"not {wanted[:_SHOWN]}…; {remedy}"
            )
        return found

    def keep(self, files: Collection[str]) -> None:
        """Remove all bases but these, and what a kill left of writing one."""
        if not self.folder.is_dir():
            return
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.part")]:
            if path.name not in files:
                path.unlink(missing_ok=True)


def fingerprint(frozen: dict[str, np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of names, dtypes, lengths and values.

    >>> fingerprint({"b": np.zeros(1, np.float32)})[:12]
    '9f5355c456ef'
    """
    digest = hashlib.sha256()
    for name in sorted(frozen):
        entries = frozen[name]
        digest.update(f"{name} {entries.dtype} {entries.size}\n".encode())
        digest.update(np.ascontiguousarray(entries).view(np.uint8).data)
    return digest.hexdigest()


def safetensors() -> Any:
    """The module `safetensors.numpy`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            "safetensors is not installed; pip install 'pb_jax[train]' brings it"
        ) from error
    return safetensors.numpy


def applies(state: Any) -> bool:
    """Whether a state can be saved as what trains and a base: whether its optimizer is compact."""
    return isinstance(state, TrainState) and is_compact(state.opt_state)


def split(state: TrainState) -> tuple[TrainState, dict[str, np.ndarray], dict[str, Any]]:
    """Take a state apart.

    Returns:
        The state with only those entries of the parameters that train, and without the indices,
        which follow from the mask; the frozen entries, on the host; and, for JSON, shapes and
        dtypes of the parameters.
    """
    compact: pb_jax.CompactState = state.opt_state.inner_state  # pyright: ignore[reportAttributeAccessIssue]
    kept = Entries(compact.mask, compact.indices).take("params", state.params, by=pick)
    if jax.process_count() > 1:  # what was picked is on this process alone
        kept = jax.tree.map(lambda leaf: stored.put(leaf, state.step.sharding), kept)
    opt_state = state.opt_state._replace(inner_state=compact._replace(indices=None))  # pyright: ignore[reportAttributeAccessIssue]
    frozen = {
        name: np.asarray(param).reshape(-1)[~_trains(compact.mask[name].bits, param).ravel()]
        for name, param in state.params.items()
        if compact.indices[name] is not None
    }
    kinds = {
        name: {"shape": list(param.shape), "dtype": str(param.dtype)}
        for name, param in state.params.items()
    }
    return state._replace(params=kept, opt_state=opt_state), frozen, kinds


def params(
    found: dict[str, np.ndarray], frozen: dict[str, np.ndarray], kinds: dict[str, Any]
) -> tuple[dict[str, np.ndarray], Any, Any]:
    """Put parameters together again.

    Args:
        found: the arrays of a checkpoint; those of parameters and mask suffice.
        frozen: see `split`.
        kinds: see `split`.

    Returns:
        The parameters; the packed mask and the indices, as a `CompactState` has them.

    Raises:
        ValueError: these do not belong together.
    """
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(kind["shape"]), kind["dtype"])
        for name, kind in kinds.items()
    }
    mask = {name: _trains(found[f"{_MASK}{name}.bits"], like) for name, like in shapes.items()}
    packed, indices = locate(mask, shapes)
    whole = {}
    for name, like in shapes.items():
        where, none = indices[name], np.zeros(0, like.dtype)
        entries = none if nothing_trains(where) else found[_PARAMS + name]
        filled = np.empty(like.size, like.dtype)
        trains = np.ones(like.size, bool) if where is None else mask[name].ravel()
        rest = frozen.get(name, none)
        if (entries.size, rest.size) != (np.count_nonzero(trains), np.count_nonzero(~trains)):
            raise ValueError(f"{name}: mask, entries and base do not belong together")
        filled[trains], filled[~trains] = entries.ravel(), rest
        whole[name] = filled.reshape(like.shape)
    return whole, packed, indices


def of_model(name: str) -> bool:
    """Whether an array is one of those that `model` needs, of checkpoints of either form."""
    return name.startswith((_PARAMS, _MASK, "model_state."))


def model(
    found: dict[str, np.ndarray], frozen: dict[str, np.ndarray], kinds: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Whole parameters and the model's state, by their names in a checkpoint of a dense state."""
    whole, _, _ = params(found, frozen, kinds)
    others = {name: array for name, array in found.items() if name.startswith("model_state.")}
    return {f"{_PARAMS}{name}": array for name, array in whole.items()} | others


def join(
    found: dict[str, np.ndarray],
    frozen: dict[str, np.ndarray],
    kinds: dict[str, Any],
    like: TrainState,
) -> TrainState:
    """The inverse of `split`.

    Args:
        found: the arrays of a checkpoint.
        frozen: see `split`.
        kinds: see `split`.
        like: a state before any mask: it says how the optimizer's state is made up.

    Raises:
        KeyError, ValueError: these do not belong together.
    """
    whole, packed, indices = params(found, frozen, kinds)
    for name, param in like.params.items():
        if name not in whole or (whole[name].shape, whole[name].dtype) != (
            param.shape,
            param.dtype,
        ):
            raise ValueError(f"{name} is of another model")

    left = {name for name in found if not name.startswith((_PARAMS, _MASK))}

    def put(array: Any, leaf: Any) -> Any:
        return stored.as_like(stored.put(array, like.step.sharding), leaf)

    def one(path: Any, leaf: Any) -> Any:
        name = stored.name_of(path)
        if name not in found and name.startswith(_INNER):
            return optax.MaskedNode()  # of a parameter that is frozen as a whole
        left.discard(name)
        return put(found[name], leaf)

    dense: Any = like.opt_state
    bare = pb_jax.CompactState(None, None, dense.inner_state)
    state = jax.tree_util.tree_map_with_path(
        one, like._replace(params={}, opt_state=dense._replace(mask=None, inner_state=bare))
    )
    if left:
        raise ValueError(f"{min(left)} is of another optimizer")
    compact = state.opt_state.inner_state._replace(
        mask=jax.tree.map(lambda leaf: stored.put(leaf, like.step.sharding), packed),
        indices=jax.tree.map(lambda leaf: stored.put(leaf, like.step.sharding), indices),
    )
    return state._replace(
        params={name: put(whole[name], param) for name, param in like.params.items()},
        opt_state=state.opt_state._replace(inner_state=compact),
    )


def _trains(bits: Any, like: Any) -> np.ndarray:
    if np.shape(bits) != (-(-like.size // 8),):
        raise ValueError(f"a mask of {like.size} weights cannot have {np.size(bits)} bytes")
    return np.unpackbits(np.asarray(bits), count=like.size).astype(bool).reshape(like.shape)

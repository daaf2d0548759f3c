"""Runs that share the epochs before their masks: one is trained, the others go on from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import pb_jax
from pb_jax.errors import UserError
from pb_jax.files import read_json
from pb_jax.training import metrics, stored
from pb_jax.training.step import TrainState
from pb_jax.training.workdir import differences, listed

_OUTER = "opt_state."


def check(config: Mapping[str, Any], source: Path) -> None:
    """Raise a `UserError` unless the run in `source` differs in what it freezes only.

    Args:
        config: resolved, of the run that is to go on from it.
        source: folder of the other run.
    """
    path = source / "config.json"
    try:
        there = read_json(path)
    except OSError as error:
        raise UserError(f"cannot start from {source}: no {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"cannot start from {source}: {path} is damaged ({error})") from error
    other = [line for line in differences(there, config) if not line.startswith("freeze.")]
    if other:
        raise UserError(
            f"cannot start from {source}, a run of another configuration:\n{listed(other)}"
        )


def read(source: Path, like: TrainState, before: int) -> tuple[TrainState, list[dict[str, Any]]]:
    """The state of another run after an epoch of full training, and its lines up to there.

    Args:
        source: folder of the other run.
        like: a fresh state of the run that is to go on.
        before: the first epoch that is to be trained anew.

    Raises:
        UserError: no checkpoint of an epoch before any mask can be read.
    """
    folder = source / "checkpoints"
    for epoch in reversed(stored.epochs(folder)):
        if epoch >= before:
            continue
        records = [r for r in metrics.read(source / "metrics.jsonl") if r["epoch"] <= epoch]
        if any(record["frozen_fraction"] for record in records):
            continue
        try:
            found = stored.arrays(folder / str(epoch))
            return _state(found, like), records
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise UserError(f"{folder / str(epoch)} cannot be read: {error}") from error
    raise UserError(
        f"cannot start from {source}: it has no checkpoint before epoch {before} and before a mask"
    )


def _state(found: Mapping[str, Any], like: TrainState) -> TrainState:
    """The arrays as a state like `like`, whatever may be around the optimizer in either."""
    opt_state = like.opt_state
    freezing = isinstance(opt_state, pb_jax.PartialBackpropState)
    inner = opt_state.inner_state if freezing else opt_state
    whole = {key: jnp.asarray(value) for key, value in found.items()}
    if f"{_OUTER}threshold" in found:
        prefix = f"{_OUTER}inner_state."
        whole |= {
            _OUTER + key.removeprefix(prefix): value
            for key, value in whole.items()
            if key.startswith(prefix)
        }
    state = stored.unflat(whole, like._replace(opt_state=inner))
    if freezing:
        opt_state = opt_state._replace(count=jnp.array(state.step), inner_state=state.opt_state)
        return state._replace(opt_state=opt_state)
    return state

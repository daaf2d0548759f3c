"""Checkpoints of everything that training changes: the latest ones and the best.

A checkpoint is an orbax one, `checkpoints/EPOCH/`, of the items `state`, the training state as a
flat dict of arrays named by their path (`params.conv1.kernel`, `opt_state.mask.conv1.kernel`), and
`record`, the epoch's line of `metrics.jsonl`. Of a compact state only what trains is saved, with a
third item, `delta`, that says which base holds the rest: see `pb_jax.training.delta`. Saving goes
on in the background while the next epoch runs; a folder gets its name when all of it has been
written, so a kill leaves the one before.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.errors import UserError
from pb_jax.training import delta, processes, stored
from pb_jax.training.modules import Arrays


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made where it is missing.
        score: the record's key by which the best is chosen; more is better.
        keep: how many of the latest to keep, besides the best.
        warn: called with a message where a damaged checkpoint is passed over.
        key: the record's key by which they are called and ordered.
    """

    def __init__(
        self,
        folder: Path,
        score: str = "val_accuracy",
        keep: int = 2,
        warn: Callable[[str], None] = print,
        key: str = "epoch",
    ) -> None:
        import orbax.checkpoint as ocp  # a second or two, so not at the top
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        logging.getLogger("absl").setLevel(logging.ERROR)
        policy = AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        self._ocp = ocp
        self._warn, self._score, self._key = warn, score, key
        self.folder = folder.resolve()
        self._bases = delta.Bases(self.folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=rank,  # without it orbax keeps no metrics for the policy
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            ),
        )

    def epochs(self) -> list[int]:
        """Epochs after which there is a whole checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, record: dict[str, Any]) -> None:
        """Save after an epoch. Returns when `state` may be donated, before all is on the disk.

        Args:
            state: any pytree of arrays.
            record: the epoch's line of `metrics.jsonl`.
        """
        save = self._ocp.args
        items: dict[str, Any] = {stored.RECORD: save.JsonSave(record)}  # pyright: ignore[reportCallIssue]
        # From here to the call below nothing is being saved: see `delta`.
        self.wait()
        if delta.applies(state):
            state, frozen, kinds = delta.split(state)
            base = processes.on_first(lambda: self._bases.write(frozen))
            items[stored.DELTA] = save.JsonSave({"base": base, "params": kinds})  # pyright: ignore[reportCallIssue]
            self._remove_bases(base["file"])
        else:
            self._remove_bases()
        items[stored.STATE] = save.StandardSave(stored.flat(state))  # pyright: ignore[reportCallIssue]
        self._manager.save(
            record[self._key],
            args=save.Composite(**items),
            metrics={"score": record[self._score], "epoch": record["epoch"]},
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest state that can be read, and its record; None where there is no checkpoint.

        Args:
            like: a pytree with the structure, shapes and dtypes of the one that was saved; where
                that was compact, of the one before any mask.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        failures = []
        for epoch in reversed(self.epochs()):
            try:
                restored = self._restore(epoch, like)
            except Exception as error:  # orbax and tensorstore raise many kinds
                failures.append(f"  {self.folder / str(epoch)}: {_said(error)}")
                processes.succeeded(False)
                continue
            if not processes.succeeded(True):
                failures.append(f"  {self.folder / str(epoch)}: another process cannot read it")
                continue
            if failures:
                for failed in [e for e in self.epochs() if e > epoch]:
                    damaged = self.folder / str(failed)
                    processes.on_first(lambda path=damaged: set_aside(path, self.folder))
                self._manager.reload()
                self._warn("WARNING: damaged checkpoint, set aside:\n" + "\n".join(failures))
                self._warn(f"WARNING: going on from the one before, of {self._key} {epoch}")
            return restored
        if failures:
            raise UserError(
                "no checkpoint of this run can be read:\n"
                + "\n".join(failures)
                + "\nRemove the folder to start anew, or choose another --workdir."
            )
        return None

    def wait(self) -> None:
        """Wait until everything saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing, and close."""
        self._manager.close()
        self._remove_bases()

    def _restore(self, epoch: int, like: Any) -> tuple[Any, dict[str, Any]]:
        checkpoint = self.folder / str(epoch)
        if stored.is_delta(checkpoint):
            about = stored.item(checkpoint, stored.DELTA)
            frozen = self._bases.read(about["base"])
            state = delta.join(stored.arrays(checkpoint), frozen, about["params"], like)
            return state, stored.item(checkpoint, stored.RECORD)
        args = self._ocp.args
        abstract = jax.tree.map(_abstract, stored.flat(like))
        found = self._manager.restore(
            epoch,
            args=args.Composite(
                state=args.StandardRestore(abstract),  # pyright: ignore[reportCallIssue]
                record=args.JsonRestore(),  # pyright: ignore[reportCallIssue]
            ),
        )
        return stored.unflat(found["state"], like), found["record"]

    def _remove_bases(self, *needed: str) -> None:
        """Remove the bases that no checkpoint names, but for those that the next one needs."""
        if not processes.is_first():
            return
        try:
            named = {
                stored.item(self.folder / str(epoch), stored.DELTA)["base"]["file"]
                for epoch in stored.epochs(self.folder)
                if stored.is_delta(self.folder / str(epoch))
            }
        except (OSError, ValueError, LookupError, TypeError):  # a damaged one may name any
            return
        self._bases.keep(named.union(needed))


def set_aside(damaged: Path, checkpoints: Path) -> None:
    """Move what is damaged out of the way of what will take its place.

    Args:
        damaged: one checkpoint, or a folder of them.
        checkpoints: a run's folder of them; the target is beside it.
    """
    folder = checkpoints.with_name(f"{checkpoints.name}_damaged")
    folder.mkdir(exist_ok=True)
    target = folder / damaged.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(damaged, target)


def read_model(
    folder: Path, epoch: int, params: Arrays, model_state: Arrays
) -> tuple[Arrays, Arrays]:
    """Parameters and model state of one checkpoint, without the optimizer's state.

    Args:
        folder: of the checkpoints.
        epoch: whose.
        params: arrays with the names, shapes and dtypes of those that were saved.
        model_state: the same.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    like = {"params": params, "model_state": model_state}
    found = read_arrays(folder, epoch)
    for name, leaf in stored.flat(like).items():
        there = found.get(name)
        if there is None or (there.shape, there.dtype) != (leaf.shape, leaf.dtype):
            has = "no" if there is None else f"{there.dtype} {there.shape}"
            raise UserError(
                f"{folder / str(epoch)} is of another model: {has} {name}, "
                f"not {leaf.dtype} {leaf.shape}"
            )
    both = stored.unflat({name: jnp.asarray(array) for name, array in found.items()}, like)
    return both["params"], both["model_state"]


def read_arrays(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    """What `read_model` reads, by its names in a checkpoint, for which no model is needed.

    Args:
        folder: of the checkpoints.
        epoch: whose.

    Returns:
        Arrays by names that begin with "params." or "model_state.".

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    checkpoint = folder.resolve() / str(epoch)
    try:
        found = stored.arrays(checkpoint, delta.of_model)
        if not stored.is_delta(checkpoint):
            return found
        about = stored.item(checkpoint, stored.DELTA)
        frozen = delta.Bases(checkpoint.parent).read(about["base"])
        return delta.model(found, frozen, about["params"])
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise UserError(f"{checkpoint} cannot be read: {_said(error)}") from error


def rank(metrics: Any) -> Any:
    """By `score`; of two epochs with the same score, the earlier is the better."""
    return (metrics["score"], -metrics["epoch"])


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _said(error: Exception) -> str:
    """What was wrong, in a line."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"

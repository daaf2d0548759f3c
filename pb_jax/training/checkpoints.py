"""Checkpoints of everything that training changes: the latest ones and the best.

A checkpoint is an orbax one, `checkpoints/EPOCH/`, of two items: `state`, the training state as a
flat dict of arrays named by their path (`params.conv1.kernel`, `opt_state.mask.conv1.kernel`), and
`record`, the epoch's line of `metrics.jsonl`. Saving goes on in the background while the next epoch
runs; a folder gets its name when all of it has been written, so a kill leaves the one before.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pb_jax.errors import UserError
from pb_jax.training.modules import Arrays


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made where it is missing.
        score: the record's key by which the best is chosen; more is better.
        keep: how many of the latest to keep, besides the best.
        warn: called with a message where a damaged checkpoint is passed over.
    """

    def __init__(
        self,
        folder: Path,
        score: str = "val_accuracy",
        keep: int = 2,
        warn: Callable[[str], None] = print,
    ) -> None:
        import orbax.checkpoint as ocp  # a second or two, so not at the top
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        logging.getLogger("absl").setLevel(logging.ERROR)
        policy = AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        self._ocp = ocp
        self._warn, self._score = warn, score
        self.folder = folder.resolve()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_rank,  # without it orbax keeps no metrics for the policy
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
        self._manager.save(
            record["epoch"],
            args=save.Composite(
                state=save.StandardSave(_flat(state)),  # pyright: ignore[reportCallIssue]
                record=save.JsonSave(record),  # pyright: ignore[reportCallIssue]
            ),
            metrics={"score": record[self._score], "epoch": record["epoch"]},
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest state that can be read, and its record; None where there is no checkpoint.

        Args:
            like: a pytree with the structure, shapes and dtypes of the one that was saved.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        failures = []
        for epoch in reversed(self.epochs()):
            try:
                restored = self._restore(epoch, like)
            except Exception as error:  # orbax and tensorstore raise many kinds
                failures.append(f"  {self.folder / str(epoch)}: {_first_line(error)}")
                continue
            for failed in [e for e in self.epochs() if e > epoch]:
                self._set_aside(failed)
            if failures:
                self._warn("WARNING: damaged checkpoint, set aside:\n" + "\n".join(failures))
                self._warn(f"WARNING: going on from the one before, of epoch {epoch}")
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

    def _restore(self, epoch: int, like: Any) -> tuple[Any, dict[str, Any]]:
        args = self._ocp.args
        abstract = jax.tree.map(_abstract, _flat(like))
        found = self._manager.restore(
            epoch,
            args=args.Composite(
                state=args.StandardRestore(abstract),  # pyright: ignore[reportCallIssue]
                record=args.JsonRestore(),  # pyright: ignore[reportCallIssue]
            ),
        )
        return _unflat(found["state"], like), found["record"]

    def _set_aside(self, epoch: int) -> None:
        """Move a damaged checkpoint out of the way of the one that takes its place."""
        damaged = self.folder.with_name(f"{self.folder.name}_damaged")
        damaged.mkdir(exist_ok=True)
        target = damaged / str(epoch)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(self.folder / str(epoch), target)
        self._manager.reload()


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
    import orbax.checkpoint as ocp

    path = folder.resolve() / str(epoch) / "state"
    like = {"params": params, "model_state": model_state}
    abstract = jax.tree.map(_abstract, _flat(like))
    args = ocp.args.PyTreeRestore(
        item=abstract,  # pyright: ignore[reportCallIssue]
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),  # pyright: ignore[reportCallIssue]
        partial_restore=True,  # pyright: ignore[reportCallIssue]
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(path, args=args)
        both = _unflat(found, like)
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from error
    return both["params"], both["model_state"]


def _rank(metrics: Any) -> Any:
    """Of two epochs with the same score, the earlier is the better."""
    return (metrics["score"], -metrics["epoch"])


def _flat(state: Any) -> dict[str, jax.Array]:
    """Leaves by the name of their path; random keys as the integers that they are made of."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _plain(leaf)
        for path, leaf in leaves
    }


def _unflat(found: dict[str, jax.Array], like: Any) -> Any:
    """The inverse of `_flat`, for a tree of the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    names = list(_flat(like))
    restored = [_as_key(found[name], leaf) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _plain(leaf: Any) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_key(leaf: jax.Array, like: Any) -> jax.Array:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"

"""Checkpoints of everything that training changes: the latest ones and the best.

A checkpoint is an orbax one, `checkpoints/EPOCH/`, of the items `state`, the training state as a
flat dict of arrays named by their path (`params.conv1.kernel`, `opt_state.mask.conv1.kernel`),
`record`, the epoch's line of `metrics.jsonl`, and `checksums`, against which both are held when
they are read; `files.json` has the checksums of their files, which are compared before. Of a
compact state only what trains is saved, with a fourth item, `delta`, that says which base holds the
rest: see `pb_jax.training.delta`. Saving goes on in the background while the next epoch runs; a
folder gets its name when all of it has been written, so a kill leaves the one before.

Several processes save and read together, each its part. One that failed to read would leave the
others waiting for it, so the first process looks at the files before, against their checksums.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.training import delta, processes, stored
from pb_jax.training.modules import Arrays

_NOTES = "_CHECKPOINT_METADATA"
# Seconds for a checkpoint's writing. orbax takes them from a clock that may be set meanwhile.
_WRITTEN_WITHIN = 7 * 24 * 3600


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

        stored.quiet()
        policy = AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        self._ocp = ocp
        self._warn, self._score, self._key = warn, score, key
        self.folder = folder.resolve()
        self._bases = delta.Bases(self.folder)
        self._saving = 0
        processes.on_first(self._mend_metrics)
        options = ocp.CheckpointManagerOptions(
            best_fn=rank,  # without it orbax keeps no metrics for the policy
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=_WRITTEN_WITHIN,
                post_finalization_callback=self._sum_files,
                # Else threads wait for them, up to five minutes by the clock, also after an error.
                create_directories_asynchronously=False,
            ),
        )
        if jax.process_count() > 1:  # who stumbles over them would leave the others waiting
            processes.on_first(self._forget_notes)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except Exception:
            if jax.process_count() > 1:
                raise
            self._forget_notes()
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def epochs(self) -> list[int]:
        """Epochs after which there is a whole checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, record: dict[str, Any]) -> None:
        """Save after an epoch. Returns when `state` may be donated, before all is on the disk.

        Args:
            state: any pytree of arrays.
            record: the epoch's line of `metrics.jsonl`.

        Raises:
            UserError: it, or the one before, cannot be written.
        """
        with self._writing():
            self._save(state, record)

    def _save(self, state: Any, record: dict[str, Any]) -> None:
        save = self._ocp.args
        content: dict[str, Any] = {stored.RECORD: record}
        # From here to the call below nothing is being saved: see `delta`.
        self._manager.wait_until_finished()
        if delta.applies(state):
            state, frozen, kinds = delta.split(state)
            base = processes.on_first(lambda: self._bases.write(frozen))
            content[stored.DELTA] = {"base": base, "params": kinds}
            self._remove_bases(base["file"])
        else:
            self._remove_bases()
        arrays = stored.flat(state)
        content[stored.SUMS] = stored.checksums(content | arrays)
        items: dict[str, Any] = {name: save.JsonSave(one) for name, one in content.items()}  # pyright: ignore[reportCallIssue]
        items[stored.STATE] = save.StandardSave(arrays)  # pyright: ignore[reportCallIssue]
        self._saving = record[self._key]
        self._manager.save(
            self._saving, args=save.Composite(**items), metrics=self._metrics(record)
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
        epochs = processes.on_first(self.epochs)
        for epoch in reversed(epochs):
            try:
                processes.on_first(lambda epoch=epoch: stored.check_files(self.folder / str(epoch)))
                restored = self._restore(epoch, like)
            except Exception as error:  # orbax and tensorstore raise many kinds
                failures.append(f"  {self.folder / str(epoch)}: {_said(error)}")
                processes.succeeded(False)
                continue
            if not processes.succeeded(True):
                failures.append(f"  {self.folder / str(epoch)}: another process cannot read it")
                continue
            if failures:
                for failed in [e for e in epochs if e > epoch]:
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
        """Wait until everything saved is on the disk; a UserError if it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing, and close; a UserError if something cannot be written."""
        with self._writing():
            self._manager.close()
            self._remove_bases()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a full disk is an error of many kinds
            goes_on = "the same again goes on from the checkpoint before."
            late = isinstance(error, TimeoutError)  # nothing that could be mended
            raise UserError(
                f"cannot write a checkpoint into {self.folder}: {_said(error)}\n"
                + (goes_on.capitalize() if late else f"When that is mended, {goes_on}")
            ) from error

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
            args=args.Composite(state=args.StandardRestore(abstract)),  # pyright: ignore[reportCallIssue]
        )
        stored.check(checkpoint, found[stored.STATE])
        record = stored.item(checkpoint, stored.RECORD)
        return stored.unflat(found[stored.STATE], like), record

    def _sum_files(self) -> None:
        """What orbax calls, on the first process, before a whole checkpoint gets its name."""
        for path in self.folder.glob(f"{self._saving}.*/"):  # not yet its name
            stored.sum_files(path)

    def _forget_notes(self) -> None:
        """Remove orbax's notes on its checkpoints, which may be damaged: it can do without."""
        for epoch in stored.epochs(self.folder):
            (self.folder / str(epoch) / _NOTES).unlink(missing_ok=True)

    def _metrics(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"score": record[self._score], "epoch": record["epoch"]}

    def _mend_metrics(self) -> None:
        """Write again what orbax would stumble over: its metrics are a part of the record."""
        for epoch in stored.epochs(self.folder):
            checkpoint = self.folder / str(epoch)
            try:
                wanted = self._metrics(stored.item(checkpoint, stored.RECORD))
            except (OSError, ValueError, LookupError, TypeError):  # `restore` will say so
                wanted = {"score": -sys.float_info.max, "epoch": epoch}
            with contextlib.suppress(OSError, ValueError):
                if stored.item(checkpoint, stored.METRICS) == wanted:
                    continue
            file = checkpoint / stored.METRICS / stored.METRICS
            if file.parent.is_file():
                file.parent.unlink()
            if file.is_dir():
                shutil.rmtree(file)
            file.parent.mkdir(exist_ok=True)
            write_json(file, wanted)

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
    text = str(error).strip().split("\n")[0].partition(" [tensorstore_spec=")[0]
    full = "No space left on device"  # at the end of a long message
    return f"{type(error).__name__}: {full if full in text else text[:200]}"

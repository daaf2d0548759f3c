"""The state of a run that was asked to end inside an epoch: `checkpoints/interrupted/STEP/`.

It is a checkpoint like the others (`pb_jax.training.checkpoints`), with a base of its own where it
is a delta. Its record says of which epoch it is and holds the epoch's sums so far. A run goes on
from it as long as there is no checkpoint of that epoch or of a later one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pb_jax.errors import UserError
from pb_jax.training import processes, stored
from pb_jax.training.checkpoints import Checkpoints, set_aside
from pb_jax.training.step import Totals, TrainState


class Part(NamedTuple):
    """What has been done of an epoch.

    Attributes:
        epoch: from 1.
        totals: of its steps so far; their number says where it goes on.
        seconds: that these took.
    """

    epoch: int
    totals: Totals
    seconds: float

    @classmethod
    def none(cls, epoch: int) -> "Part":
        """Of an epoch that has not begun."""
        return cls(epoch, Totals.empty(), 0.0)


class Interrupted:
    """The interrupted state of one run.

    Args:
        checkpoints: folder of the run's checkpoints.
        warn: called with a message where a damaged state is passed over.
    """

    def __init__(self, checkpoints: Path, warn: Callable[[str], None] = print) -> None:
        self._folder, self._warn = checkpoints / stored.INTERRUPTED, warn

    def save(self, state: TrainState, part: Part) -> Path:
        """Save a state in the place of an earlier one; returns its folder when it is on the disk.

        Args:
            state: after the last step that was made.
            part: of the epoch in which, or before which, that was.
        """
        totals = {name: leaf.item() for name, leaf in jax.device_get(part.totals)._asdict().items()}
        step = int(state.step)
        record = {"step": step, "epoch": part.epoch, "seconds": part.seconds, "totals": totals}
        store = self._open()
        try:
            # The same step is the same state: the evaluation of its epoch is made again, at most.
            if step not in store.epochs():
                store.save(state, record)
        finally:
            store.close()
        return self._folder / str(step)

    def exists(self) -> bool:
        """Whether there is an interrupted state."""
        return processes.on_first(lambda: bool(stored.epochs(self._folder)))

    def restore(self, like: TrainState, after: int, last: int) -> tuple[TrainState, Part] | None:
        """The state to go on from; None where there is none, or none that can be read.

        Args:
            like: see `Checkpoints.restore`.
            after: the last epoch that has a checkpoint; a state not beyond it is removed.
            last: the last epoch that is to be trained; a state beyond it is left alone.
        """
        if not self.exists():
            return None
        store = self._open()
        try:
            found = store.restore(like)
        except UserError as error:
            self._warn(f"WARNING: damaged, set aside: {str(error).splitlines()[1].strip()}")
            processes.on_first(lambda: set_aside(self._folder, self._folder.parent))
            return None
        finally:
            store.close()
        assert found is not None
        state, record = found
        if record["epoch"] <= after:
            self.remove()
            return None
        if record["epoch"] > last:
            return None
        totals = Totals(
            **{
                name: jnp.asarray(record["totals"][name], leaf.dtype)
                for name, leaf in Totals.empty()._asdict().items()
            }
        )
        return state, Part(record["epoch"], totals, record["seconds"])

    def remove(self) -> None:
        """Remove the state, where there is one: its epoch is over."""
        processes.on_first(self._remove)

    def _remove(self) -> None:
        passed = self._folder.with_name(
            f"{stored.INTERRUPTED}_passed"
        )  # a kill leaves nothing that looks whole
        shutil.rmtree(passed, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(passed)
            shutil.rmtree(passed, ignore_errors=True)

    def _open(self) -> Checkpoints:
        return Checkpoints(self._folder, "step", 1, self._warn, key="step")

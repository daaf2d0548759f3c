"""The stacked training states of several runs, and one program that trains them all.

The steps of `pb_jax.training.step` are mapped over the states; the data is there once.

Masks are made outside of the step, as a branch inside of it would be taken by none or by all: under
`vmap`, a `lax.cond` whose predicate differs between runs computes both sides at every step. The
optimizer's state stays dense, whatever `Freezing.compact` says: compact states have shapes of their
own, and cannot be stacked.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pb_jax
from pb_jax.training import mask_report
from pb_jax.training.freezing import Freezing
from pb_jax.training.loop import epoch_record
from pb_jax.training.modules import Arrays
from pb_jax.training.step import (
    Steps,
    Totals,
    TrainState,
    frozen_counts,
    strong,
    threshold_of,
)
from pb_jax.training.task import EvalTotals, Task

SIDE_BY_SIDE = ("vmap", "map", "faster")
"""How a step is mapped over the runs: all at once, one after the other in one program, or whichever
is faster, which is found out by training one epoch both ways."""

_NEVER = 1_000_000  # an epoch that does not come


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the runs.

    Attributes:
        workdir: the run's folder; it exists.
        seed: of the order of its batches.
        params: initial trained arrays.
        model_state: the model's other arrays.
        freezing: what is frozen and when; None: full training.
        share_of: which member's frozen share `rule` takes, by its place in the list; an earlier
            one, which makes its masks in the same epochs.
        rule: the rule for a share, where `share_of` is given.
    """

    workdir: Path
    seed: int
    params: Arrays
    model_state: Arrays
    freezing: Freezing | None = None
    share_of: int | None = None
    rule: Callable[[float], pb_jax.Rule] | None = None


class Ensemble:
    """The compiled functions over stacked states.

    Args:
        task: what is trained on what; its own initial arrays are not used.
        members: the runs, with models and optimizers of the same structure.
        optimizer: of full training.
        side_by_side: one of `SIDE_BY_SIDE`.
        compiler_options: as `jax.jit` takes them.

    Raises:
        ValueError: members that cannot be stacked, or a task with batches of several lengths.
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[Member],
        optimizer: optax.GradientTransformation,
        side_by_side: str = "vmap",
        compiler_options: dict[str, Any] | None = None,
    ) -> None:
        self._freezings = _freezings(task, members)
        _check(task, members, self._freezings, side_by_side)
        self._task, self._members = task, members
        self._steps = [Steps(task, optimizer, freezing) for freezing in self._freezings]
        self.ways = SIDE_BY_SIDE[:2] if side_by_side == "faster" else (side_by_side,)
        self._compiler_options = compiler_options
        self._train_data, self._evaluation_data = task.train_data(), task.evaluation_data()
        self._evaluation_rows = jnp.asarray(task.evaluation_order().rows)
        self._sizes = {name: leaf.size for name, leaf in members[0].params.items()}
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._counts = jax.jit(jax.vmap(frozen_counts))

    @property
    def weights(self) -> int:
        """Trained weights of one member."""
        return sum(self._sizes.values())

    def initial(self) -> TrainState:
        """The stacked states before the first step; the members' arrays stay."""
        states = [
            strong(steps.initial(member.params, member.model_state))
            for steps, member in zip(self._steps, self._members, strict=True)
        ]
        return _stacked(states)

    def train(
        self,
        state: TrainState,
        totals: Totals,
        data: Any,
        rows: jax.Array,
        *,
        way: str = "vmap",
    ) -> tuple[TrainState, Totals]:
        """An epoch of every member, a pure function. `rows`: (members, steps, batch size)."""
        many = functools.partial(self._steps[0].train_many, count=self._task.steps_per_epoch)
        return _mapped(way, many, (0, 0, None, 0))(state, totals, data, rows)

    def choose(self, state: TrainState) -> dict[str, float]:
        """Train an epoch in each of `ways` and keep the fastest; returns what each took."""
        rows, seconds = jnp.asarray(self._rows(1)), {}
        for way in self.ways:
            copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
            began = time.monotonic()
            trained = self._compiled[way](copy, self._totals(), self._train_data, rows)
            jax.block_until_ready(trained)
            seconds[way] = time.monotonic() - began
        self.ways = (min(seconds, key=seconds.__getitem__),)
        return seconds

    def compile(self, state: TrainState, epochs: range) -> None:
        """Compile what these epochs need, all at once."""
        rows = jnp.asarray(self._rows(1))
        batches = jnp.int32(0), jnp.float32(0)
        magnitudes = _mapped("map", self._steps[0].add_magnitudes, (0, 0, None, 0, None, None))
        evaluate = _mapped("map", self._steps[0].evaluate_many, (0, 0, 0, None, None))
        jobs = {
            "evaluate": self._compilation(
                evaluate,
                state.params,
                state.model_state,
                self._eval_totals(),
                self._evaluation_data,
                self._evaluation_rows,
            ),
        }
        if any(freezing.makes_mask(epoch) for freezing in self._freezings for epoch in epochs):
            arguments = (state.params, state, self._train_data, self._judged_rows(1), *batches)
            jobs["magnitudes"] = self._compilation(magnitudes, *arguments, donate=True)
        for way in self.ways:
            train = functools.partial(self.train, way=way)
            arguments = (state, self._totals(), self._train_data, rows)
            jobs[way] = self._compilation(train, *arguments, donate=True)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = {name: pool.submit(job) for name, job in jobs.items()}
            self._compiled = {name: job.result() for name, job in running.items()}

    def epoch(
        self, state: TrainState, epoch: int, rate: Any
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        """Train and evaluate once; returns the new states and a line of each member's metrics."""
        began = time.monotonic()
        rows = jnp.asarray(self._rows(epoch))
        state = self._masks(state, epoch)
        train = self._compiled[self.ways[0]]
        state, totals = train(state, self._totals(), self._train_data, rows)
        totals = jax.device_get(totals)
        trained = time.monotonic()
        found = jax.device_get(
            self._compiled["evaluate"](
                state.params,
                state.model_state,
                self._eval_totals(),
                self._evaluation_data,
                self._evaluation_rows,
            )
        )
        frozen = np.asarray(self._counts(state.opt_state)).sum(axis=1, dtype=np.int64)
        thresholds = jax.device_get(threshold_of(state.opt_state))
        members = len(self._members)
        rate_of_all = members * self._task.steps_per_epoch * self._task.batch_size
        seconds = (time.monotonic() - began) / members
        lines = []
        for place in range(members):
            of = functools.partial(jax.tree.map, lambda leaf, place=place: leaf[place])
            loss, correct, counted = of(found)
            lines.append(
                epoch_record(
                    epoch,
                    int(state.step[place]),
                    of(totals),
                    (float(loss) / int(counted), int(correct) / int(counted)),
                    int(frozen[place]) / self.weights,
                    of(thresholds),
                    rate,
                    examples_per_second=rate_of_all / (trained - began) / members,
                    seconds=seconds,
                )
            )
        return state, lines

    def _masks(self, state: TrainState, epoch: int) -> TrainState:
        """Make the masks that are due before the epoch's first step, and take away what is over."""
        due = []
        for place, freezing in enumerate(self._freezings):
            if freezing.releases(epoch):
                state = _replaced(state, place, freezing.release(_of(state, place)))
            if freezing.makes_mask(epoch):
                due.append(place)
        if not due:
            return state
        judged = self._judged(state, epoch)
        shares: dict[int, float] = {}
        for place in due:
            member, freezing, before = (
                self._members[place],
                self._freezings[place],
                _of(state, place),
            )
            mine = jax.tree.map(lambda leaf, place=place: leaf[place], (judged, state.params))
            rule = freezing.rule
            if member.share_of is not None:
                assert member.rule is not None
                rule = member.rule(shares[member.share_of])
            chosen = _selection(rule)(*mine, freezing.key(before.count))
            after = before._replace(mask=chosen.mask, threshold=chosen.threshold)
            state = _replaced(state, place, after)
            report = mask_report.look(chosen.estimate, mine[0], chosen.mask, freezing.alpha)
            path = mask_report.save(
                member.workdir,
                report,
                sizes=self._sizes,
                threshold=jax.device_get(chosen.threshold),
                alpha=freezing.alpha,
                step=int(state.step[place]) + 1,
                epoch=epoch,
            )
            with np.load(path, allow_pickle=False) as content:
                shares[place] = float(content["frozen_fraction"])
        return state

    def _judged(self, state: TrainState, epoch: int) -> Arrays:
        """Mean magnitudes over the batches that the masks are judged by, stacked."""
        rows = self._judged_rows(epoch)
        total, weight = jax.tree.map(jnp.zeros_like, state.params), jnp.float32(1 / rows.shape[1])
        for row in range(rows.shape[1]):
            total = self._compiled["magnitudes"](
                total, state, self._train_data, rows, jnp.int32(row), weight
            )
        return total

    def _judged_rows(self, epoch: int) -> jax.Array:
        orders = [self._task.order(member.seed, epoch) for member in self._members]
        return jnp.asarray(np.stack([self._freezings[0].judged(order).rows for order in orders]))

    def _rows(self, epoch: int) -> np.ndarray:
        return np.stack([self._task.order(member.seed, epoch).rows for member in self._members])

    def _totals(self) -> Totals:
        return _stacked([Totals.empty()] * len(self._members))

    def _eval_totals(self) -> EvalTotals:
        return _stacked([EvalTotals.empty()] * len(self._members))

    def _compilation(
        self, function: Callable[..., Any], *arguments: Any, donate: bool = False
    ) -> Callable[[], Any]:
        jitted = jax.jit(
            function,
            donate_argnums=(0,) if donate else (),
            compiler_options=self._compiler_options,
        )
        return jitted.lower(*arguments).compile


def _mapped(how: str, function: Callable[..., Any], axes: Sequence[int | None]) -> Any:
    """The function over the stacked arguments, whose axis is 0; None: the same for all members."""
    if how == "vmap":
        return jax.vmap(function, in_axes=tuple(axes))

    def one_by_one(*arguments: Any) -> Any:
        stacked = [a for a, axis in zip(arguments, axes, strict=True) if axis is not None]

        def one(mine: Any) -> Any:
            remaining = iter(mine)
            return function(
                *(
                    argument if axis is None else next(remaining)
                    for argument, axis in zip(arguments, axes, strict=True)
                )
            )

        return jax.lax.map(one, tuple(stacked))

    return one_by_one


@functools.lru_cache(maxsize=16)
def _selection(rule: pb_jax.Rule) -> Callable[..., pb_jax.Selection]:
    """The compiled rule: members that share the rule share the program."""
    return jax.jit(lambda judged, params, key: rule(judged, params, key=key))


def _of(state: TrainState, place: int) -> pb_jax.PartialBackpropState:
    """One member's optimizer state."""
    opt_state = jax.tree.map(lambda leaf: leaf[place], state.opt_state)
    assert isinstance(opt_state, pb_jax.PartialBackpropState)
    return opt_state


def _replaced(state: TrainState, place: int, one: pb_jax.PartialBackpropState) -> TrainState:
    """The states with one member's mask and threshold."""
    all_ = state.opt_state
    assert isinstance(all_, pb_jax.PartialBackpropState)

    def put(leaves: Any, mine: Any) -> Any:
        return jax.tree.map(lambda leaf, new: leaf.at[place].set(new), leaves, mine)

    opt_state = all_._replace(
        mask=put(all_.mask, one.mask), threshold=put(all_.threshold, one.threshold)
    )
    return state._replace(opt_state=opt_state)


def _freezings(task: Task, members: Sequence[Member]) -> list[Freezing]:
    """One for each member: full training, too, carries a mask, which stays all True."""
    given = [member.freezing for member in members if member.freezing is not None]
    like = given[0] if given else Freezing(pb_jax.none(), task.steps_per_epoch)
    full = dataclasses.replace(
        like, rule=pb_jax.none(), start_epoch=_NEVER, refresh_epochs=None, stop_epoch=None
    )
    return [member.freezing or full for member in members]


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _check(
    task: Task, members: Sequence[Member], freezings: Sequence[Freezing], side_by_side: str
) -> None:
    if side_by_side not in SIDE_BY_SIDE:
        raise ValueError(f"side_by_side must be one of {SIDE_BY_SIDE}, got {side_by_side!r}")
    if len(task.lengths) > 1:
        raise ValueError(f"the batches of the task must have one length, got {task.lengths}")
    for name in ("mode", "batches", "batch_size", "steps_per_epoch"):
        values = {getattr(freezing, name) for freezing in freezings}
        if len(values) != 1:
            raise ValueError(f"the members must have the same freezing.{name}, got {values}")
    for place, member in enumerate(members):
        if member.share_of is not None and not 0 <= member.share_of < place:
            raise ValueError(f"share_of must be an earlier member's place, got {member.share_of}")

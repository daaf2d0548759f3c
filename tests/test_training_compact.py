import collections
import gc
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pb_jax
from pb_jax.compaction import CompactState
from pb_jax.errors import UserError
from pb_jax.rules import Selection
from pb_jax.study import make_plan, parse_rules, run_together
from pb_jax.training import compact, metrics, optimizers
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.classification import Split
from pb_jax.training.constants import of_changing, split_constants, with_constants
from pb_jax.training.progress import Progress
from pb_jax.training.runner import Runner
from pb_jax.training.step import Totals, frozen_counts, mask_of, strong
from tests.tiny_training import (
    STEPS,
    lines,
    tiny_data,
    tiny_fit,
    tiny_freezing,
    tiny_schedule,
    tiny_steps,
    tiny_task,
)

WEIGHTS = 36 * 12 + 12 + 24 + 12 * 4 + 4
STOPPED = {"refresh_epochs": 2, "stop_epoch": 6, "compact": True}  # masks in epochs 3 and 5


def fitted(workdir, epochs, **options):
    """Run `fit`; returns the last state, as its checkpoint holds it."""
    freezing = tiny_freezing(**options)
    tiny_fit(workdir, epochs, freezing=freezing)
    return restored(workdir, freezing)


def restored(workdir, freezing):
    _, state = tiny_steps(freezing)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore(strong(state))[0]
    finally:
        checkpoints.close()


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_nearly(one, other):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6, err_msg=jax.tree_util.keystr(path))


def assert_nearly_the_same_lines(one, other, rel):
    for line, expected in zip(lines(one), lines(other), strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            assert line[key] == (value if value is None else pytest.approx(value, rel=rel)), key


def said(workdir):
    printed = (workdir / "printed.txt").read_text().splitlines()
    return [line for line in printed if line.startswith("optimizer state")]


# ----------------------------------------------------------------------------------------------
# Whole runs.
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dense")
    return workdir, fitted(workdir, 5)


class Watched(NamedTuple):
    """A run that was looked at: what it compiled, and whether the dense state is gone.

    Attributes:
        workdir: of the run.
        state: the last.
        jobs: names of what was compiled, time by time.
        programs: how many XLA was given while an epoch was trained and evaluated, by epoch.
        freed: whether nothing of the dense state is there after the epoch of the mask.
    """

    workdir: Path
    state: Any
    jobs: list[list[tuple[str, int]]]
    programs: dict[int, int]
    freed: bool


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory):
    """A run that compacts by itself."""
    workdir = tmp_path_factory.mktemp("by_itself")
    jobs, dense, freed = [], [], []
    programs, began = collections.Counter(), {}

    def count(event, _duration, **_details):
        programs["so far"] += event == "/jax/core/compile/backend_compile_duration"

    def compile_(self, asked, original=Runner._compile):
        jobs.append(sorted(asked))
        original(self, asked)

    def begin(self, epoch, *rest, original=Progress.begin):
        began[epoch] = programs["so far"]
        original(self, epoch, *rest)

    def compacted(self, state, *rest, original=Runner._compacted):
        arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        dense.extend(map(weakref.ref, arrays))
        return original(self, state, *rest)

    def append(path, record, original=metrics.append):
        epoch = record["epoch"]
        programs[epoch] = programs["so far"] - began[epoch]
        if epoch == 3:
            gc.collect()
            freed.extend(ref() is None or ref().is_deleted() for ref in dense)
        original(path, record)

    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_compile", compile_)
        patch.setattr(Runner, "_compacted", compacted)
        patch.setattr(Progress, "begin", begin)
        patch.setattr(metrics, "append", append)
        state = fitted(workdir, 5, compact=None)
    jax.monitoring.unregister_event_duration_listener(count)
    assert len(freed) == 3 * 6, "mask and both moments"
    return Watched(workdir, state, jobs, programs, all(freed))


def test_a_run_compacts_by_itself(by_itself):
    workdir, state = by_itself.workdir, by_itself.state
    assert isinstance(state.opt_state.inner_state, CompactState)
    assert state.opt_state.mask is None
    (line,) = said(workdir)
    assert line.startswith("optimizer state compacted: 0.0047 MB -> 0.0031 MB, compiled in ")


def test_it_equals_the_dense_run(dense, by_itself):
    before = tiny_freezing().start_epoch - 1
    assert lines(by_itself.workdir)[:before] == lines(dense[0])[:before] != []
    masked, expected = (lines(folder)[before] for folder in (by_itself.workdir, dense[0]))
    rounded = {key: pytest.approx(expected[key], rel=2e-7) for key in ("train_loss", "val_loss")}
    assert masked == expected | rounded
    for one, other in zip(lines(by_itself.workdir), lines(dense[0]), strict=True):
        for key in ("frozen_fraction", "zero_gradient_fraction", "threshold", "learning_rate"):
            assert one[key] == other[key], key
    assert_nearly_the_same_lines(by_itself.workdir, dense[0], rel=1e-5)
    state, other = by_itself.state, dense[1]
    assert_nearly(state.params, other.params)
    assert_same_bits(pb_jax.unpack_mask(state.opt_state.inner_state.mask), mask_of(other.opt_state))
    for name, mask in mask_of(other.opt_state).items():
        one, two = (np.asarray(s.params[name])[~np.asarray(mask)] for s in (state, other))
        np.testing.assert_array_equal(one, two)


def test_one_program_more_and_none_after_it(by_itself):
    first, *later = by_itself.jobs
    assert {("train", 0), ("mask", 0)} <= set(first)
    assert later == [[("train compact", 0)]]
    assert by_itself.programs["so far"] > by_itself.programs[3] > 0
    assert by_itself.programs[4] == by_itself.programs[5] == 0


def test_the_dense_state_is_freed(by_itself):
    assert by_itself.freed


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("refreshed")
    return workdir, fitted(workdir, 6, **STOPPED)


@pytest.mark.slow
def test_refreshed_and_stopped(refreshed):
    workdir, state = refreshed
    frozen = [line["frozen_fraction"] for line in lines(workdir)]
    assert frozen[2] == frozen[3] > 0.2
    assert frozen[4] > 0.2
    assert frozen[5] == 0
    assert len(said(workdir)) == 2
    assert not compact.is_compact(state.opt_state)
    assert all(np.all(mask) for mask in state.opt_state.mask.values())
    assert np.isnan(state.opt_state.threshold)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stopped", [4, *(pytest.param(epoch, marks=SLOW) for epoch in (2, 3, 5))])
def test_resumed_from_either_form(refreshed, tmp_path, stopped):
    state = fitted(tmp_path, stopped, **STOPPED)
    assert compact.is_compact(state.opt_state) == (stopped > 2)
    assert_same_bits(fitted(tmp_path, 6, **STOPPED), refreshed[1])
    assert lines(tmp_path) == lines(refreshed[0])


def test_resumed_without_another_mask(by_itself, tmp_path):
    fitted(tmp_path, 4, compact=None)
    assert_same_bits(fitted(tmp_path, 5, compact=None), by_itself.state)
    assert lines(tmp_path) == lines(by_itself.workdir)
    assert not said(tmp_path), "there was nothing to compact"


@pytest.mark.slow
def test_under_scan(by_itself, tmp_path):
    freezing = tiny_freezing(compact=None)
    tiny_fit(tmp_path, 5, freezing=freezing, scan=True)
    assert_nearly_the_same_lines(tmp_path, by_itself.workdir, rel=1e-4)
    assert_nearly(restored(tmp_path, freezing).params, by_itself.state.params)


def test_an_optimizer_that_is_not_element_wise(tmp_path):
    optimizer = optax.lamb(1e-2)
    tiny_fit(tmp_path, 3, freezing=tiny_freezing(compact=None), optimizer=optimizer)
    (line,) = said(tmp_path)
    assert line.startswith("optimizer state stays dense: inner is not element-wise")
    assert lines(tmp_path)[2]["frozen_fraction"] > 0.2
    message = r"freeze\.compact=True does not go with this optimizer: .* not element-wise"
    with pytest.raises(UserError, match=message):
        tiny_fit(tmp_path / "never", 3, freezing=tiny_freezing(compact=True), optimizer=optimizer)
    assert not lines(tmp_path / "never")


# ----------------------------------------------------------------------------------------------
# Single steps.
# ----------------------------------------------------------------------------------------------


class Trained:
    """The steps of the tiny network, and the state after one that made a mask."""

    def __init__(self, rule, optimizer=None, **options):
        freezing = tiny_freezing(rule=rule, start_epoch=1, **options)
        self.steps, state = tiny_steps(freezing, optimizer)
        data = tiny_data().train
        split = Split(jnp.asarray(data.images), jnp.asarray(data.labels))
        order = jnp.arange(80, dtype=jnp.int32).reshape(STEPS, 10)
        self.rest = (split, order)
        self.train = jax.jit(self.steps.train)
        self.masked, *_ = jax.jit(self.steps.mask)(strong(state), Totals.empty(), *self.rest)

    def some(self, state, count=3):
        totals = Totals.empty()
        for _ in range(count):
            state, totals = self.train(state, totals, *self.rest)
        return state, totals


def chosen(trains):
    """A rule that lets leaves train by their names: as a whole, not at all, or every other one."""

    def rule(grads, params=None, *, key=None):
        del params, key
        mask = {
            name: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0
            if trains(name) is None
            else jnp.full(leaf.shape, trains(name))
            for name, leaf in grads.items()
        }
        return Selection(mask, jnp.float32(0.5), None)

    return rule


# Batch normalisation takes the stem's bias away again: its gradients are rounding.
HALF = chosen(lambda name: False if name == "stem.bias" else None)
HEAD = chosen(lambda name: name.startswith("head"))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.sgd(0.1, momentum=0.9), id="sgd", marks=pytest.mark.slow),
        pytest.param(optax.adamw(1e-2, weight_decay=0.1), id="adamw", marks=pytest.mark.slow),
        pytest.param(optimizers.create("amsgrad_torch", tiny_schedule()), id="amsgrad_torch"),
    ],
)
def test_the_updates_of_the_dense_step(optimizer):
    run = Trained(HALF, optimizer, compact=True)
    small, _ = run.steps.compacted(run.masked)
    (dense, totals), (state, other) = run.some(run.masked), run.some(small)
    assert_nearly(state.params, dense.params)
    assert int(state.opt_state.count) == int(dense.opt_state.count) == 4
    assert float(totals.zeros) == float(other.zeros) > 0.5
    for name, mask in mask_of(dense.opt_state).items():
        frozen = ~np.asarray(mask)
        np.testing.assert_array_equal(state.params[name][frozen], run.masked.params[name][frozen])
        assert np.any(state.params[name] != run.masked.params[name]) == (name != "stem.bias")
    counts = frozen_counts(dense.opt_state)
    assert compact.trainable(state.opt_state) == WEIGHTS - int(counts.sum())
    back = run.steps.expanded(state).opt_state
    assert_same_bits(back.mask, dense.opt_state.mask)
    assert jax.tree.structure(back) == jax.tree.structure(dense.opt_state)


def test_leaves_that_are_frozen_as_a_whole_are_not_differentiated():
    run = Trained(HEAD, compact=True)
    small, _ = run.steps.compacted(run.masked)
    dense, narrow = (
        str(jax.make_jaxpr(run.steps.train)(state, Totals.empty(), *run.rest))
        for state in (run.masked, small)
    )
    assert dense.count("dot_general[") == 5, "forward, both kernels, and the head's input"
    assert narrow.count("dot_general[") == 3, "forward, and the head's kernel"
    assert "bool[36,12]" in dense
    assert "bool[36,12]" not in narrow
    (one, totals), (two, other) = run.some(run.masked), run.some(small)
    assert_nearly(one.params, two.params)
    assert float(totals.zeros) == pytest.approx(float(other.zeros))


def test_nothing_trains():
    run = Trained(chosen(lambda name: False), compact=True)
    small, _ = run.steps.compacted(run.masked)
    state, totals = run.some(small)
    assert_same_bits(state.params, run.masked.params)
    assert float(totals.zeros) / 3 == 1
    assert compact.trainable(state.opt_state) == 0


def test_no_dense_updates_in_the_compact_step():
    """Nothing of a parameter's shape is made but its gradient and the new parameter."""
    run = Trained(HALF, optimizers.create("amsgrad_torch", tiny_schedule()), compact=True)
    small, _ = run.steps.compacted(run.masked)
    text = str(jax.make_jaxpr(run.steps.train)(small, Totals.empty(), *run.rest))
    assert "bool[36,12]" not in text
    assert "sqrt" in text
    assert not [line for line in text.splitlines() if "sqrt" in line and "[36,12]" in line]


@pytest.mark.parametrize("form", ["no mask", "dense", "compact"])
def test_a_compiled_step_returns_only_what_changes(form):
    run = Trained(HALF, compact=True)
    if form == "no mask":
        steps, state = tiny_steps()
        state = strong(state)
    else:
        steps, state = run.steps, run.masked
        state = run.steps.compacted(state)[0] if form == "compact" else state
    wanted, _ = jax.jit(steps.train)(state, Totals.empty(), *run.rest)
    names = len(state.params)
    apart = {"no mask": 0, "dense": names, "compact": names + 5}  # the stem's bias has no indices
    read = {**apart, "compact": 5}
    before = len(jax.tree.leaves(state))
    changing, constants = split_constants(state)
    assert len(jax.tree.leaves(constants)) == apart[form]
    assert len(jax.tree.leaves(changing)) == before - apart[form]
    assert_same_bits(with_constants(changing, constants), state)
    assert len(jax.tree.leaves(constants.read)) == read[form]
    train = jax.jit(of_changing(steps.train, constants), donate_argnums=0)
    changed, _ = train(changing, constants.read, Totals.empty(), *run.rest)
    assert len(jax.tree.leaves(changed)) == before - apart[form]
    assert_same_bits(with_constants(changed, constants), wanted)


def test_the_learning_rate_is_set_through_the_compact_state():
    run = Trained(HALF, optimizers.adjustable("adamw", 1e-2), compact=True)
    small, _ = run.steps.compacted(run.masked)
    opt_state = optax.tree.set(small.opt_state, learning_rate=jnp.float32(0))
    state, _ = run.some(small._replace(opt_state=opt_state))
    assert_same_bits(state.params, small.params)
    assert np.any(run.some(small)[0].params["head.kernel"] != small.params["head.kernel"])


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"compact": False}, ""),
        ({"mode": "gradients", "compact": None}, ""),
        ({"refresh_epochs": 3, "compact": None}, ""),
        ({"stop_epoch": 4, "compact": None}, ""),
        ({"rule": pb_jax.none(), "compact": None}, "optimizer state stays dense: 0.0047 MB -> "),
    ],
)
def test_what_stays_dense(options, note):
    freezing = tiny_freezing(**({"rule": HALF} | options))
    optimizer, params = optax.adamw(1e-2), {"w": jnp.ones((20, 26))}
    state = freezing.around(optimizer).init(params)
    state = state._replace(mask=freezing.select(state, params, params).mask)
    same, found = freezing.compacted(optimizer, state, params)
    assert same is state
    assert found.startswith(note)
    assert bool(found) == bool(note)


def test_gradients_alone_cannot_be_compacted():
    with pytest.raises(ValueError, match="compact=True needs mode='updates'"):
        tiny_freezing(compact=True, mode="gradients")


def test_runs_side_by_side_stay_dense(tmp_path):
    base = {"freeze": {"compact": True}}
    runs = make_plan(base, parse_rules("kde_otsu"), seeds=2)
    with pytest.raises(UserError, match=r"freeze\.compact=True is not for runs that train side"):
        run_together(tmp_path, base, runs, lambda config: tiny_task())

import contextlib
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from pb_jax.errors import UserError
from pb_jax.training import StoppedError, metrics, settle, stored
from pb_jax.training.interrupted import Interrupted, Part
from pb_jax.training.runner import Runner
from pb_jax.training.step import Totals
from pb_jax.training.stopping import Stopping
from tests.tiny_training import (
    STEPS,
    assert_same_run,
    lines,
    saved_epochs,
    tiny_fit,
    tiny_freezing,
    tiny_steps,
)

REFRESHED = {"refresh_epochs": 2, "stop_epoch": 6, "batches": 3}  # masks in epochs 3 and 5
EPOCHS = 6


class Terminated(BaseException):
    pass


def terminate(*_):
    raise Terminated


@pytest.fixture(autouse=True)
def handlers():
    """Those of a program: a signal that comes through is an exception."""
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    assert signal.getsignal(signal.SIGTERM) is terminate
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGTERM, before)


def interrupted(workdir):
    return stored.epochs(workdir / "checkpoints" / "interrupted")


# ----------------------------------------------------------------------------------------------
# The signals alone.
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "effect"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_is_noted_and_has_its_effect_at_the_end(number, effect):
    passed = []

    def block():
        with Stopping() as stopping:
            assert not stopping.asked
            signal.raise_signal(number)
            passed.append(stopping.asked)

    with pytest.raises(effect):
        block()
    assert passed == [True]


def test_the_second_has_its_effect_at_once():
    def block():
        with Stopping():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("not reached")

    with pytest.raises(Terminated):
        block()


def test_an_error_goes_first():
    def block():
        with Stopping():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()


def test_work_that_may_be_left():
    def stopped():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("not reached")

    def block():
        with Stopping() as stopping:
            assert stopping.unless_asked(lambda: 3) == 3
            assert not stopping.asked
            assert stopping.unless_asked(stopped) is None
            assert stopping.asked
            assert stopping.unless_asked(lambda: pytest.fail("asked before")) is None

    with pytest.raises(Terminated):
        block()


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert not stopping.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_signals_stay_as_they_are():
    found = []

    def work():
        with Stopping() as stopping:
            found.append((signal.getsignal(signal.SIGTERM), stopping.asked))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


# ----------------------------------------------------------------------------------------------
# Runs.
# ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def signals_at(monkeypatch, owner, name, *calls, number=signal.SIGTERM):
    """Send a signal after the calls of a method that are numbered so, from 1."""
    inner, count = getattr(owner, name), 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        result = inner(*args, **kwargs)
        if count in calls:
            signal.raise_signal(number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        yield
    assert count >= max(calls)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    tiny_fit(workdir, EPOCHS, freezing=tiny_freezing(**REFRESHED), every_epochs=4)
    return workdir


def fit(workdir, **options):
    options = {"freezing": tiny_freezing(**REFRESHED), "every_epochs": 4} | options
    return tiny_fit(workdir, EPOCHS, **options)


# Where the signal comes, and the epoch and its step after which the run was saved.
FAST = {
    "inside an epoch": ((Runner, "_step", STEPS + 3), (2, 3)),
    "before a mask": ((Runner, "_judged", 1), (3, 0)),
    "inside a mask step": ((Runner, "_mask", 1), (3, 1)),
    "in the last evaluation": ((Runner, "evaluate", 6), (6, STEPS)),
}
SLOW = {
    "first step": ((Runner, "_step", 1), (1, 1)),
    "last step": ((Runner, "_step", 2 * STEPS), (2, STEPS)),
    "between epochs": ((metrics, "append", 3), (4, 0)),
    "before a mask is made anew": ((metrics, "append", 4), (5, 0)),
    "inside its step": ((Runner, "_mask", 2), (5, 1)),
    "in evaluation": ((Runner, "evaluate", 5), (5, STEPS)),
}
MOMENTS = FAST | SLOW


@pytest.mark.parametrize(
    "moment", [*FAST, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)]
)
def test_stopped_and_resumed(whole, tmp_path, monkeypatch, moment):
    where, (epoch, step) = MOMENTS[moment]
    with signals_at(monkeypatch, *where), pytest.raises(Terminated):
        fit(tmp_path)
    assert interrupted(tmp_path) == [(epoch - 1) * STEPS + step]
    assert len(lines(tmp_path)) == epoch - 1
    fit(tmp_path)
    printed = (tmp_path / "printed.txt").read_text()
    assert f"resuming in epoch {epoch}, after step {step} of it" in printed
    assert_same_run(whole, tmp_path, EPOCHS)
    assert {path.name for path in tmp_path.glob("*.npz")} == {
        path.name for path in whole.glob("*.npz")
    }
    assert interrupted(tmp_path) == []
    assert saved_epochs(tmp_path)[-1] == EPOCHS


@pytest.mark.slow
def test_stopped_again_and_again(whole, tmp_path, monkeypatch):
    """By Ctrl-C after every four steps; an epoch has eight."""
    stops = 0
    while True:
        try:
            with signals_at(monkeypatch, Runner, "_step", 4, number=signal.SIGINT):
                fit(tmp_path)
        except KeyboardInterrupt:
            stops += 1
            continue
        except AssertionError:  # it ended before the fourth step
            break
        break
    assert stops >= 10
    assert_same_run(whole, tmp_path, EPOCHS)


@pytest.mark.slow
def test_under_scan_an_epoch_is_finished_first(tmp_path, monkeypatch):
    fit(tmp_path / "whole", scan=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        workdir = tmp_path / str(int(number))
        with (
            signals_at(monkeypatch, Runner, "_mask", 1, number=number),
            pytest.raises((KeyboardInterrupt, Terminated)),
        ):
            fit(workdir, scan=True)
        assert interrupted(workdir) == [2 * STEPS + 1]
        with (
            signals_at(monkeypatch, metrics, "append", 1, number=number),
            pytest.raises((KeyboardInterrupt, Terminated)),
        ):
            fit(workdir, scan=True)
        assert interrupted(workdir) == [3 * STEPS]
        fit(workdir, scan=True)
        assert_same_run(tmp_path / "whole", workdir, EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["inside an epoch", "inside a mask step", "between epochs"])
def test_compact_states(tmp_path, monkeypatch, moment):
    options = {"freezing": tiny_freezing(compact=True)}
    fit(tmp_path / "whole", **options)
    at = (Runner, "_step", 3 * STEPS + 3) if moment == "inside an epoch" else MOMENTS[moment][0]
    with signals_at(monkeypatch, *at), pytest.raises(Terminated):
        fit(tmp_path / "run", **options)
    [step] = interrupted(tmp_path / "run")
    assert stored.is_delta(tmp_path / "run" / "checkpoints" / "interrupted" / str(step))
    fit(tmp_path / "run", **options)
    assert_same_run(tmp_path / "whole", tmp_path / "run", EPOCHS)


def test_damaged_it_is_passed_over(whole, tmp_path, monkeypatch):
    with signals_at(monkeypatch, Runner, "_step", STEPS + 3), pytest.raises(Terminated):
        fit(tmp_path)
    [step] = interrupted(tmp_path)
    folder = tmp_path / "checkpoints" / "interrupted" / str(step)
    (folder / "record" / "metadata").write_text("{")
    fit(tmp_path)
    printed = (tmp_path / "printed.txt").read_text()
    assert f"WARNING: damaged, set aside: {folder}" in printed
    assert (tmp_path / "checkpoints_damaged" / "interrupted" / str(step)).is_dir()
    assert "resuming after epoch 1" in printed
    assert_same_run(whole, tmp_path, EPOCHS)


def test_a_handler_that_returns(tmp_path, monkeypatch):
    signal.signal(signal.SIGTERM, heard := lambda *_: None)
    try:
        with signals_at(monkeypatch, Runner, "_step", 2), pytest.raises(StoppedError) as caught:
            fit(tmp_path)
    finally:
        assert signal.getsignal(signal.SIGTERM) is heard
        signal.signal(signal.SIGTERM, terminate)
    assert str(tmp_path / "checkpoints" / "interrupted" / "2") in str(caught.value)


def test_an_interrupted_first_epoch_keeps_its_configuration(tmp_path):
    settle({"seed": 1}, tmp_path)
    settle({"seed": 2}, tmp_path)
    (tmp_path / "checkpoints" / "interrupted" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="seed: 2 there, 3 here"):
        settle({"seed": 3}, tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*Is a directory"):
        settle({"seed": 2}, tmp_path)


def totals(*values):
    return Totals(*(jnp.asarray(v, e.dtype) for v, e in zip(values, Totals.empty(), strict=True)))


def test_what_is_saved_comes_back(tmp_path):
    _, state = tiny_steps()
    state = state._replace(step=jnp.int32(17))
    part = Part(4, totals(1 / 3, 2**31 - 1, 7, 1e-42, 3, 0), 1.25)
    one = Interrupted(tmp_path)
    assert one.restore(state, 0, 9) is None
    assert one.save(state, part) == tmp_path / "interrupted" / "17"
    one.save(state, part)  # it is there
    found = one.restore(tiny_steps()[1], 3, 4)
    assert found is not None
    assert int(found[0].step) == 17
    assert (found[1].epoch, found[1].seconds) == (4, 1.25)
    for there, here in zip(found[1].totals, part.totals, strict=True):
        assert there.dtype == here.dtype
        np.testing.assert_array_equal(there, here)
    assert one.restore(state, 2, 3) is None  # beyond the end
    assert one.exists()
    assert one.restore(state, 4, 9) is None  # passed
    assert not one.exists()
    one.save(state._replace(step=jnp.int32(18)), part)
    one.save(state._replace(step=jnp.int32(21)), part)
    assert stored.epochs(tmp_path / "interrupted") == [21]

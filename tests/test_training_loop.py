import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pb_jax.errors import UserError
from pb_jax.training import DivergedError, metrics
from pb_jax.training.batches import training_order
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.modules import functional
from tests.tiny_training import (
    BATCH,
    MEAN,
    STD,
    STEPS,
    TEST,
    Tiny,
    assert_same_run,
    lines,
    saved_epochs,
    saved_state,
    tiny_data,
    tiny_fit,
    tiny_freezing,
)

REFRESHED = {"refresh_epochs": 2, "stop_epoch": 6}  # masks in epochs 3 and 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six epochs that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    summary = tiny_fit(workdir, 6, freezing=tiny_freezing(**REFRESHED))
    return workdir, summary


def test_a_line_an_epoch(whole):
    workdir, _ = whole
    records = metrics.read(workdir / "metrics.jsonl")
    assert [tuple(record) for record in records] == [metrics.KEYS] * 6
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records] == [STEPS * e for e in range(1, 7)]
    frozen = [record["frozen_fraction"] for record in records]
    assert frozen[:2] == [0, 0]
    assert frozen[2] == frozen[3] > 0.2
    assert frozen[4] > 0.2
    assert frozen[5] == 0  # full training again
    assert [record["threshold"] is None for record in records] == [True] * 2 + [False] * 3 + [True]
    zero = [record["zero_gradient_fraction"] for record in records]
    assert all(z >= f - 1e-6 for z, f in zip(zero, frozen, strict=True))
    assert [record["learning_rate"] for record in records] == [0.01] * 4 + [0.001] * 2
    assert all(record["seconds"] > 0 < record["examples_per_second"] for record in records)
    assert records[-1]["train_accuracy"] > records[0]["train_accuracy"]


def test_the_summary(whole):
    workdir, summary = whole
    assert summary == json.loads((workdir / "summary.json").read_text())
    records = metrics.read(workdir / "metrics.jsonl")
    best = max(record["val_accuracy"] for record in records)
    assert summary["best_val_accuracy"] == best
    assert records[summary["best_epoch"] - 1]["val_accuracy"] == best
    assert summary["final_val_accuracy"] == records[-1]["val_accuracy"]
    assert summary["frozen_fraction"] == records[4]["frozen_fraction"]
    assert summary["threshold"] == records[4]["threshold"]
    assert summary["parameters"] == 36 * 12 + 12 + 24 + 12 * 4 + 4
    assert summary["seconds"] == pytest.approx(sum(r["seconds"] for r in records), abs=1e-3)


def test_plain_lines_in_a_pipe(whole):
    printed = (whole[0] / "printed.txt").read_text()
    assert [line.split()[0] for line in printed.splitlines()] == ["compiled"] + 6 * ["epoch"]
    assert "\r" not in printed
    assert "\x1b" not in printed
    assert "epoch 3/6" in printed
    assert f"frozen {lines(whole[0])[2]['frozen_fraction']:.1%}  t 2 " in printed


def test_latest_and_best_are_kept(whole):
    workdir, summary = whole
    assert set(saved_epochs(workdir)) == {5, 6, summary["best_epoch"]}


def test_tensorboard_has_the_same_numbers(whole):
    files = list((whole[0] / "tensorboard").iterdir())
    assert len(files) == 1
    assert all(tag in files[0].read_bytes() for tag in (b"val/accuracy", b"run/frozen_fraction"))


def test_frozen_weights_do_not_move_and_statistics_do(tmp_path):
    tiny_fit(tmp_path, 5, keep=5)
    before, after = saved_state(tmp_path, 2), saved_state(tmp_path, 5)
    moved = 0
    for name in (n.removeprefix("params.") for n in after if n.startswith("params.")):
        trains = np.asarray(after[f"opt_state.mask.{name}"])
        one, other = np.asarray(before[f"params.{name}"]), np.asarray(after[f"params.{name}"])
        np.testing.assert_array_equal(one[~trains], other[~trains])
        moved += np.sum(one != other)
    assert moved > 0
    assert np.all(after["model_state.norm.mean"] != before["model_state.norm.mean"])


@pytest.mark.parametrize("stopped", [1, 2, 3, 4, 5])
def test_resumed_after_any_epoch(whole, tmp_path, stopped):
    freezing = tiny_freezing(**REFRESHED)
    tiny_fit(tmp_path, stopped, freezing=freezing)
    tiny_fit(tmp_path, 6, freezing=freezing)
    assert_same_run(whole[0], tmp_path, 6)
    assert f"resuming after epoch {stopped}" in (tmp_path / "printed.txt").read_text()


@pytest.mark.parametrize("epoch", [1, 3])
def test_killed_between_the_line_and_the_checkpoint(whole, tmp_path, monkeypatch, epoch):
    """The line of an epoch without a checkpoint is written again, not twice."""
    freezing = tiny_freezing(**REFRESHED)

    def die(self, state, record, save=Checkpoints.save):
        if record["epoch"] == epoch:
            raise KeyboardInterrupt
        save(self, state, record)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(KeyboardInterrupt):
            tiny_fit(tmp_path, 6, freezing=freezing)
    assert len(lines(tmp_path)) == epoch
    tiny_fit(tmp_path, 6, freezing=freezing)
    assert_same_run(whole[0], tmp_path, 6)
    assert sorted(p.name for p in tmp_path.glob("*.npz")) == sorted(
        p.name for p in whole[0].glob("*.npz")
    )


@pytest.mark.slow
def test_sigkill(tmp_path):
    """A killed process, resumed, ends as one that ran through."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from tests.tiny_training import tiny_fit
            tiny_fit(Path(sys.argv[1]), 15)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def start(workdir):
        return subprocess.Popen([sys.executable, script, workdir], env=environment)

    assert start(tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    for epochs in (1, 3):
        process = start(killed)
        deadline = time.monotonic() + 120
        while len(metrics.read(killed / "metrics.jsonl")) < epochs:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0
    assert_same_run(tmp_path / "whole", killed, 15)


def test_under_scan_the_numbers_are_the_same(whole, tmp_path):
    tiny_fit(tmp_path, 6, freezing=tiny_freezing(**REFRESHED), scan=True)
    for stepped, scanned in zip(lines(whole[0]), lines(tmp_path), strict=True):
        assert scanned.keys() == stepped.keys()
        for key, value in stepped.items():
            expected = value if value is None else pytest.approx(value, rel=1e-4)
            assert scanned[key] == expected, key
    one, other = saved_state(whole[0], 6), saved_state(tmp_path, 6)
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def test_every_test_example_counts_once(tmp_path):
    tiny_fit(tmp_path, 1, freezing=None)
    saved, test = saved_state(tmp_path, 1), tiny_data().test
    model = Tiny(nnx.Rngs(0))
    apply, params, state, _ = functional(model)
    params = {name: saved[f"params.{name}"] for name in params}
    for name in ("norm.mean", "norm.var"):
        state[name] = saved[f"model_state.{name}"]
    images = (test.images.astype(np.float32) / 255 - MEAN[0]) / STD[0]
    logits = apply(params, state, jnp.asarray(images), train=False)[0]
    assert TEST % BATCH  # else the last batch needs no filling up
    (record,) = lines(tmp_path)
    assert record["val_accuracy"] == np.mean(np.argmax(logits, -1) == test.labels)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, test.labels).mean()
    assert record["val_loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("batches", "size", "taken"),
    [(1, None, 1), (3, None, 3), (999, None, STEPS), (1, 40, 1), (9, 35, 2)],
)
def test_a_mask_judged_by_other_batches(tmp_path, batches, size, taken):
    """The mask is the rule's, of mean abs(gradient) at the parameters that epoch 1 leaves."""
    freezing = tiny_freezing(batches=batches, batch_size=size, start_epoch=2)
    tiny_fit(tmp_path, 2, freezing=freezing)
    first, saved = saved_state(tmp_path, 1), saved_state(tmp_path, 2)
    data = tiny_data().train
    apply, params, state, _ = functional(Tiny(nnx.Rngs(0)))
    params = {name: jnp.asarray(first[f"params.{name}"]) for name in params}
    for name in ("norm.mean", "norm.var", "drop.rngs.count"):
        state[name] = jnp.asarray(first[f"model_state.{name}"])

    @jax.jit
    @jax.grad
    def gradient(params, rows):
        x = (data_images[rows].astype(jnp.float32) / 255 - MEAN[0]) / STD[0]
        logits, _ = apply(params, state, x, train=True)
        labels = jnp.asarray(data.labels)[rows]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    data_images = jnp.asarray(data.images)
    rows = training_order(3, 2, len(data.labels), BATCH).ravel()
    rows = rows[: taken * (size or BATCH)].reshape(taken, -1)
    grads = [gradient(params, row) for row in rows]
    judged = jax.tree.map(lambda *g: np.mean(np.abs(g), axis=0), *grads)
    wrong = 0
    for name, magnitude in judged.items():
        near = np.abs(magnitude / 1e-2 - 2.0) < 1e-3  # may fall on either side
        wrong += np.sum((saved[f"opt_state.mask.{name}"] != (magnitude / 1e-2 > 2.0)) & ~near)
    assert wrong == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    schedule_that_explodes = optax.piecewise_constant_schedule(1e-3, {2 * STEPS + 3: 1e38})
    with pytest.raises(DivergedError) as caught:
        tiny_fit(tmp_path, 6, freezing=None, optimizer=optax.sgd(schedule_that_explodes))
    message = str(caught.value)
    assert f"the loss of step {2 * STEPS + 5} (epoch 3) is not finite" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '2'}, of epoch 2" in message
    assert len(lines(tmp_path)) == 2
    assert saved_epochs(tmp_path)[-1] == 2


def test_data_that_is_smaller_than_a_batch(tmp_path):
    with pytest.raises(UserError, match="batch_size=84 is more than the 83 training examples"):
        tiny_fit(tmp_path, 1, batch_size=84)


def test_one_batch_an_epoch(tmp_path):
    data = tiny_data()
    data.train = types.SimpleNamespace(
        images=data.train.images[:BATCH], labels=data.train.labels[:BATCH]
    )
    for scan in (False, True):
        freezing = tiny_freezing(steps_per_epoch=1)
        tiny_fit(tmp_path / str(scan), 4, data=data, freezing=freezing, scan=scan)
    assert lines(tmp_path / "False") == lines(tmp_path / "True")


def test_fewer_epochs_than_there_are(whole):
    with pytest.raises(UserError, match="holds a run of 6 epochs already"):
        tiny_fit(whole[0], 5)


def test_lost_lines_are_noticed(tmp_path):
    tiny_fit(tmp_path, 2, freezing=None)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl lacks lines of epochs 1 to 2"):
        tiny_fit(tmp_path, 3, freezing=None)

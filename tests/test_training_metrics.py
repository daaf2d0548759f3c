import json
import math

import pytest

from pb_jax.training import metrics


def record(epoch, **changes):
    values = dict.fromkeys(metrics.KEYS, 0.5) | {"epoch": epoch, "step": 10 * epoch}
    return values | changes


def test_lines_come_back_and_non_finite_numbers_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.read(path) == []
    metrics.append(path, record(1, threshold=math.nan))
    metrics.append(path, record(2, val_loss=math.inf))
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    assert metrics.read(path) == [record(1, threshold=None), record(2, val_loss=None)]


def test_a_line_cut_short_does_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.append(path, record(1))
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut])
        assert metrics.read(path)[0] == record(1)
        assert len(metrics.read(path)) == (2 if cut == len(whole) - 1 else 1)
        assert metrics.rewind(path, 1) == [record(1)] * len(metrics.read(path))
    path.write_text("{\n" + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(line 1: "):
        metrics.read(path)


def test_rewind_drops_later_epochs(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2, 3):
        metrics.append(path, record(epoch))
    assert metrics.rewind(path, 2) == [record(1), record(2)]
    metrics.append(path, record(3))
    assert [line["epoch"] for line in metrics.read(path)] == [1, 2, 3]


def test_the_summary_names_the_first_best_epoch_and_the_last_mask():
    records = [
        record(1, val_accuracy=0.7, frozen_fraction=0.0, threshold=None, seconds=1.0),
        record(2, val_accuracy=0.9, frozen_fraction=0.8, threshold=0.25, seconds=2.0),
        record(3, val_accuracy=0.9, frozen_fraction=0.8, threshold=0.25, seconds=3.0),
        record(4, val_accuracy=0.6, frozen_fraction=0.0, threshold=None, seconds=4.0),
    ]
    summary = metrics.summarise(records, "val_accuracy", parameters=12, epochs=4)
    assert (summary["best_val_accuracy"], summary["best_epoch"]) == (0.9, 2)
    assert (summary["final_val_accuracy"], summary["epochs"]) == (0.6, 4)
    assert (summary["frozen_fraction"], summary["threshold"]) == (0.8, 0.25)
    assert (summary["parameters"], summary["seconds"]) == (12, 10.0)
    assert {"python", "jax", "flax", "optax", "numpy"} <= summary["versions"].keys()
    json.dumps(summary, allow_nan=False)
    full = metrics.summarise(records[:1], "val_accuracy", parameters=12, epochs=1)
    assert (full["frozen_fraction"], full["threshold"]) == (0.0, None)
    assert "threshold                none" in metrics.table(full)


def test_tensorboard_goes_on_where_it_stopped(tmp_path):
    for epoch in (0, 1):
        board = metrics.TensorBoard(tmp_path, epoch)
        board.write(record(epoch + 1, threshold=math.nan))
        board.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"train/loss" in written
    assert b"run/learning_rate" in written
    assert b"threshold" not in written


@pytest.mark.parametrize(
    "damage",
    ["3", "null", '{"epoch": 1}', '"epoch"', "[" * 100_000, "\xff", '{"epoch": NaN}', "1" * 5000],
)
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    metrics.append(path, record(1))
    path.write_bytes(path.read_bytes() + damage.encode("latin-1") + b"\n")
    with pytest.raises(metrics.MetricsError, match=r"metrics\.jsonl is damaged \(line 2: "):
        metrics.read(path)


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(metrics.MetricsError, match=r"cannot read .*: Is a directory"):
        metrics.read(tmp_path)


@pytest.mark.parametrize("change", [{"epoch": True}, {"step": 1.5}, {"seconds": "1"}])
def test_a_value_of_another_type(tmp_path, change):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(record(1) | change) + "\n")
    with pytest.raises(metrics.MetricsError, match=f"{next(iter(change))} is "):
        metrics.read(path)


def summary(**changes):
    return dict.fromkeys(metrics.SUMMARY, 3) | changes


def test_a_summary_is_read(tmp_path):
    path = tmp_path / "summary.json"
    assert metrics.read_summary(path) is None
    metrics.write_summary(path, summary(threshold=math.nan))
    assert metrics.read_summary(path, metrics.SUMMARY) == summary(threshold=None)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        *(json.dumps(summary(frozen_fraction=value)) for value in ("0.5", None, [1], True)),
        json.dumps(summary(threshold="none")),
        json.dumps(summary(best_epoch=1.5)),
        json.dumps(summary(test_bleu4=[0.1])),
        json.dumps(summary()).replace("3", "1e999", 1),
        json.dumps(summary()).replace("3", "9" * 400, 1),
    ],
    ids=range(12),
)
def test_a_damaged_summary_is_named(tmp_path, damage):
    path = tmp_path / "summary.json"
    path.write_text(damage)
    with pytest.raises(metrics.MetricsError, match=r"summary\.json is damaged \("):
        metrics.read_summary(path, metrics.SUMMARY)

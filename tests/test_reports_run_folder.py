import json
import math
import zipfile

import numpy as np
import pytest

from pb_jax.errors import UserError
from pb_jax.reports.run_folder import read_mask, read_run
from pb_jax.training import mask_report
from pb_jax.training.mask_report import HISTOGRAM_BINS, LeafCounts, MaskReport
from tests.synthetic_run import SMALL, mask_content, write_mask, write_run


def test_a_whole_run(tmp_path):
    write_run(tmp_path, epochs=12, masks=[3, 11])
    for epoch in (11, 3):  # as text, step 1001 comes before 201
        write_mask(tmp_path, epoch=epoch, estimate=True)
    run = read_run(tmp_path)
    assert (run.title, run.rule) == ("toy on noise", "kde_otsu")
    assert list(run.curves["epoch"]) == list(range(1, 13))
    assert run.curves["val_accuracy"][1] == pytest.approx(0.7)
    assert [(mask.step, mask.epoch) for mask in run.masks] == [(201, 3), (1001, 11)]
    mask, content = run.masks[0], mask_content(epoch=3, estimate=True)
    assert mask.names == tuple(SMALL)
    assert mask.threshold == 1.5
    assert list(mask.leaf_thresholds) == [1.5] * len(SMALL)
    np.testing.assert_array_equal(mask.counts, content["hist_counts"])
    np.testing.assert_array_equal(mask.estimate.subrange_means, content["subrange_means"])


def test_what_training_saves_can_be_read(tmp_path):
    def leaf(frozen, zeros, others):
        histogram = np.zeros(HISTOGRAM_BINS, np.int32)
        histogram[100] = others
        return LeafCounts(np.int32(frozen), np.int32(zeros), np.int32(0), histogram)

    # The report has the leaves in any order; that of the sizes is the network's.
    report = MaskReport(None, {"head.kernel": leaf(1, 0, 3), "stem.kernel": leaf(5, 4, 2)})
    path = mask_report.save(
        tmp_path,
        report,
        sizes={"stem.kernel": 6, "head.kernel": 4},
        threshold=0.25,
        alpha=0.1,
        step=7,
        epoch=2,
    )
    mask = read_mask(path, rule="quantile")
    assert (mask.step, mask.epoch, mask.learning_rate) == (7, 2, 0.1)
    assert (mask.threshold, mask.frozen_fraction) == (0.25, 0.6)
    assert mask.names == ("stem.kernel", "head.kernel")
    assert list(mask.frozen) == [5, 1]
    assert list(mask.zeros) == [4, 0]
    assert list(mask.counts[:, 100]) == [2, 3]
    assert mask.counts.shape[1] + 1 == mask.edges.size
    assert mask.estimate is None


def test_a_threshold_a_leaf(tmp_path):
    path = write_mask(tmp_path, per_leaf=True)
    mask = read_mask(path, rule="mean_threshold")
    assert math.isnan(mask.threshold)
    assert list(mask.leaf_thresholds) == [0.5, 0.75, 1.0, 1.25, 1.5]


@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_threshold_of_weights_is_none_of_gradients(tmp_path, per_leaf):
    mask = read_mask(write_mask(tmp_path, per_leaf=per_leaf), rule="weight_magnitude")
    assert math.isnan(mask.threshold)
    assert np.isnan(mask.leaf_thresholds).all()


def test_where_the_largest_are_frozen_there_is_no_upper_threshold(tmp_path):
    write_run(tmp_path, rule="quantile", freeze={"largest": True})
    write_mask(tmp_path)
    assert math.isnan(read_run(tmp_path).masks[0].threshold)


def test_null_is_nan_and_a_line_cut_short_does_not_count(tmp_path):
    write_run(tmp_path, epochs=3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[1]) | {"val_loss": None}
    path.write_text("\n".join([lines[0], json.dumps(record), lines[2][:20]]))
    curves = read_run(tmp_path).curves
    assert list(curves["epoch"]) == [1, 2]
    assert math.isnan(curves["val_loss"][1])


def test_there_is_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_missing_files_are_named(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"there is no .*{name}"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("config.json", "{", "Expecting"),
        ("config.json", "[]", "holds no object"),
        ("config.json", '{"freeze": {"rule": "none"}}', "lacks 'model'"),
        (
            "config.json",
            '{"model": {"name": 1}, "dataset": {"name": 1}, "freeze": {}}',
            "lacks 'rule'",
        ),
        ("metrics.jsonl", "{}\n", "line 1: no epoch"),
        ("metrics.jsonl", "?\n{}\n", "line 1: Expecting"),
        ("metrics.jsonl", "[]\n", "line 1: no object"),
    ],
)
def test_damaged_text_files_are_named(tmp_path, name, content, why):
    write_run(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*{why}"):
        read_run(tmp_path)


def test_a_run_without_an_epoch(tmp_path):
    write_run(tmp_path, epochs=0)
    with pytest.raises(UserError, match=r"metrics.jsonl is empty: no epoch"):
        read_run(tmp_path)


def _change(content, **changes):
    return {key: value for key, value in (content | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"leaf_sizes": None}, "lacks 'leaf_sizes'"),
        ({"epoch": None}, "lacks 'epoch'"),
        ({"grid": None}, "lacks 'grid'"),
        ({"leaf_zeros": np.zeros(3, int)}, r"leaf_zeros has shape \(3,\), not \(5,\)"),
        ({"leaf_thresholds": np.zeros(3)}, r"leaf_thresholds has shape \(3,\)"),
        ({"hist_edges": np.arange(4.0)}, "hist_counts has shape"),
        ({"density": np.zeros(3)}, "grid and density differ"),
        ({"region": np.zeros(3)}, "region has shape"),
        ({"epoch": np.zeros(3)}, ""),
        ({"leaf_sizes": np.array([object()])}, "allow_pickle"),
    ],
)
def test_damaged_masks_are_named(tmp_path, changes, why):
    path = write_mask(tmp_path, _change(mask_content(estimate=True), **changes))
    with pytest.raises(UserError, match=rf"mask_step_201.npz is damaged \(.*{why}"):
        read_mask(path, rule="kde_otsu")


@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_a_mask_cut_short_is_named(tmp_path, kept):
    path = write_mask(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"mask_step_201.npz is damaged \(it is no .npz archive\)"):
        read_mask(path, rule="kde_otsu")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content.replace(b"\x93NUMPY", b"\x93numpy", 1), "Bad CRC-32"),
        (lambda content: _with_flags(content, 0x20), "NotImplementedError: compressed patched"),
        (lambda content: _with_flags(content, 0x01), "RuntimeError: .* is encrypted"),
    ],
)
def test_an_archive_that_cannot_be_unpacked(tmp_path, change, why):
    path = write_mask(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"mask_step_201.npz is damaged \(.*{why}"):
        read_mask(path, rule="kde_otsu")


def _with_flags(content, flags):
    """The archive, with these flags of its first member."""
    changed = bytearray(content)
    changed[6] |= flags
    changed[content.index(b"PK\x01\x02") + 8] |= flags
    return bytes(changed)


def test_a_member_that_is_no_array(tmp_path):
    path = write_mask(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("density.npy", b"no array")
    with pytest.raises(UserError, match=r"mask_step_201.npz is damaged \(density is no array"):
        read_mask(path, rule="kde_otsu")


def test_a_mask_with_changed_bytes_is_named(tmp_path):
    path = write_mask(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"hist_counts") + 2000
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mask_step_201.npz is damaged \(BadZipFile: Bad CRC-32"):
        read_mask(path, rule="kde_otsu")

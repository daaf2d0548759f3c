import jax.numpy as jnp
import numpy as np
import pytest

import pb_jax
from pb_jax.training.mask_report import HISTOGRAM_BINS, look
from tests.tiny_training import STEPS, saved_state, tiny_fit, tiny_freezing

ESTIMATE = set(pb_jax.ThresholdEstimate._fields) - {"threshold"}
ALWAYS = {
    "step",
    "epoch",
    "learning_rate",
    "frozen_fraction",
    "leaf_names",
    "leaf_sizes",
    "leaf_frozen",
    "leaf_zeros",
    "leaf_nonfinite",
    "hist_counts",
    "hist_edges",
}
NAMES = ["stem.kernel", "stem.bias", "norm.scale", "norm.bias", "head.kernel", "head.bias"]


def report(workdir, epoch=3):
    with np.load(workdir / f"mask_step_{(epoch - 1) * STEPS + 1}.npz", allow_pickle=False) as file:
        return dict(file)


def test_of_the_papers_rule(tmp_path):
    tiny_fit(tmp_path, 3, freezing=tiny_freezing(rule=pb_jax.kde_otsu(learning_rate=1e-2)))
    found = report(tmp_path)
    assert found.keys() == ALWAYS | ESTIMATE | {"threshold"}
    assert (found["step"], found["epoch"], found["learning_rate"]) == (2 * STEPS + 1, 3, 1e-2)
    assert sorted(found["leaf_names"]) == sorted(NAMES)
    assert found["leaf_names"][0].startswith("stem")  # not sorted: as defined
    mask = {n: np.asarray(saved_state(tmp_path, 3)[f"opt_state.mask.{n}"]) for n in NAMES}
    for i, name in enumerate(found["leaf_names"]):
        assert found["leaf_sizes"][i] == mask[name].size
        assert found["leaf_frozen"][i] == np.sum(~mask[name])
    total = found["leaf_sizes"].sum()
    assert found["frozen_fraction"] == found["leaf_frozen"].sum() / total
    assert found["num_total"] == total
    assert found["leaf_zeros"].sum() == found["num_zero"]
    counted = found["hist_counts"].sum() + found["leaf_zeros"].sum() + found["leaf_nonfinite"].sum()
    assert counted == total
    # Every weight below the threshold is frozen, so their numbers agree but for one bin.
    edges = found["hist_edges"]
    below = found["hist_counts"][:, edges[1:] <= found["threshold"]].sum() + found["num_zero"]
    upto = found["hist_counts"][:, edges[:-1] <= found["threshold"]].sum() + found["num_zero"]
    assert below <= found["leaf_frozen"].sum() <= upto


def test_of_a_rule_without_an_estimate_and_with_a_threshold_a_leaf(tmp_path):
    rule = pb_jax.mean_threshold(scope="leaf", learning_rate=1e-2)
    tiny_fit(tmp_path, 3, freezing=tiny_freezing(rule=rule))
    found = report(tmp_path)
    assert found.keys() == ALWAYS | {"leaf_thresholds"}
    thresholds = saved_state(tmp_path, 3)
    for name, threshold in zip(found["leaf_names"], found["leaf_thresholds"], strict=True):
        assert threshold == pytest.approx(float(thresholds[f"opt_state.threshold.{name}"]))


def test_counts_against_numpy():
    rng = np.random.default_rng(0)
    grads = np.exp(rng.normal(size=1000) * 6).astype(np.float32).reshape(10, 100)
    grads[0, :5] = (0, np.nan, np.inf, 1e30, 1e-30)
    mask = {"w": jnp.asarray(grads > 1)}
    found = look(None, {"w": jnp.asarray(grads)}, mask, 1e-2).leaves["w"]
    x = np.abs(grads.astype(np.float64)) / 1e-2
    good = x[np.isfinite(x) & (x > 0)]
    edges = np.logspace(-8, 5, HISTOGRAM_BINS + 1)
    expected = np.histogram(np.clip(good, edges[0], edges[-1] * 0.999), edges)[0]
    assert (int(found.zeros), int(found.nonfinite)) == (1, 2)
    assert int(found.frozen) == np.sum(~(grads > 1))
    assert np.abs(np.asarray(found.histogram) - expected).sum() <= 4  # rounding at the edges
    assert int(found.histogram.sum()) == good.size

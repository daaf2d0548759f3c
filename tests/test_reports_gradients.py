import math

import numpy as np
import pytest

from pb_jax.reports import gradients
from pb_jax.reports.run_folder import read_mask, read_run
from tests.synthetic_run import EDGES, SMALL, deep, mask_content, write_mask, write_run


def read(workdir, content=None, rule="kde_otsu", freeze=None, **options):
    write_run(workdir, rule=rule, freeze=freeze)
    path = write_mask(workdir, content, **options)
    return read_run(workdir), read_mask(path, rule=rule)


def labels(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def thresholds(axes):
    """Places of the vertical lines."""
    return [
        line.get_xdata()[0]
        for line in axes.lines
        if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 1]
    ]


def stairs(axes):
    """The histogram's values; the shade's patch is a rectangle."""
    (patch,) = [patch for patch in axes.patches if hasattr(patch, "get_data")]
    return patch.get_data()


def shades(axes):
    """Ends of the shaded ranges."""
    spans = [patch for patch in axes.patches if not hasattr(patch, "get_data")]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in spans]


def test_the_papers_layers(tmp_path):
    names = deep(8)
    run, mask = read(tmp_path, sizes=names)
    figure = gradients.draw_layers(run, mask)
    assert figure.get_suptitle() == "toy on noise: gradients of layers, mask of step 201 (epoch 3)"
    kernels = [name for name in names if name.endswith("kernel")]
    assert len(figure.axes) == 4
    for axes, layer in zip(figure.axes, (3, 7, 10, 13), strict=True):
        leaf = mask.names.index(kernels[layer - 1])
        zero, frozen = mask.zeros[leaf] / 2304, mask.frozen[leaf] / 2304
        assert axes.get_title() == (
            f"layer {layer} of 18: {kernels[layer - 1]}, 2,304 weights\n"
            f"{100 * zero:.1f} % zero gradients, {100 * frozen:.1f} % frozen"
        )
        assert axes.get_xscale() == "log"
        np.testing.assert_array_equal(stairs(axes).values, mask.counts[leaf])
        np.testing.assert_array_equal(stairs(axes).edges, EDGES)
        assert thresholds(axes) == [1.5]
        ((left, right),) = shades(axes)
        assert (left, right) == (axes.get_xlim()[0], pytest.approx(1.5))
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    below = [axes.get_xlabel() for axes in figure.axes]
    assert below == ["", "", *["x = |gradient| / learning rate"] * 2]
    beside = [axes.get_ylabel() for axes in figure.axes]
    assert beside == ["gradients in a bin", ""] * 2
    assert labels(figure) == [
        "gradients that are not 0",
        "threshold t = 1.5",
        "frozen: x ≤ t, and all zeros",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_layers(tmp_path, count):
    sizes = {f"dense{i}.{leaf}": 50 for i in range(count) for leaf in ("kernel", "bias")}
    figure = gradients.draw_layers(*read(tmp_path, sizes=sizes))
    assert len(figure.axes) == min(count, 4)
    assert all(axes.get_xlabel() for axes in figure.axes[-2:])
    assert figure.axes[0].get_title().startswith(f"layer 1 of {count}: dense0.kernel")
    assert figure.axes[-1].get_title().startswith(f"layer {count} of {count}: ")


def test_all_gradients_with_an_estimate(tmp_path):
    run, mask = read(tmp_path, estimate=True, freeze={"coverage": 0.95})
    figure = gradients.draw_all(run, mask)
    histogram, density, subranges = figure.axes
    low, high = mask.estimate.region
    zero = 100 * mask.zeros.sum() / sum(SMALL.values())
    assert histogram.get_title() == (
        f"1,124 gradients: {zero:.1f} % zero, {100 * mask.frozen_fraction:.1f} % frozen"
    )
    np.testing.assert_array_equal(stairs(histogram).values, mask.counts.sum(0))
    assert histogram.get_ylabel() == "gradients in a bin"

    curve = density.lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), mask.estimate.grid)
    np.testing.assert_array_equal(curve.get_ydata(), mask.estimate.density)
    assert shades(density) == [pytest.approx((low, high))]
    assert density.get_ylabel() == "density"
    (box,) = [artist for artist in density.artists if hasattr(artist, "txt")]
    assert box.txt.get_text() == (
        f"threshold t = 1.5\nbandwidth h = {mask.estimate.bandwidth:.4g}\n"
        f"region [{low:.4g}, {high:.4g}]\nholds 95 % of x > 0\nlearning rate 0.001"
    )

    frozen, trains = subranges.lines[:2]
    assert frozen.get_xdata().max() <= 1.5 < trains.get_xdata().min()
    present = mask.estimate.subrange_shares > 0
    assert frozen.get_xdata().size + trains.get_xdata().size == present.sum()
    shares = np.concatenate([frozen.get_ydata(), trains.get_ydata()])
    assert shares.sum() == pytest.approx(100)
    assert subranges.get_ylabel() == "share of the region (%)"
    assert subranges.get_xlabel() == "mean of the sub-range, x = |gradient| / learning rate"
    assert len(subranges.get_legend().get_texts()) == 2

    assert [thresholds(axes) for axes in figure.axes] == [[1.5]] * 3
    assert density.get_xlim() == subranges.get_xlim()
    assert labels(figure)[-1] == "region of highest density"


def test_all_gradients_of_a_rule_without_an_estimate(tmp_path):
    run, mask = read(tmp_path, rule="quantile", freeze={"batches": 4})
    figure = gradients.draw_all(run, mask)
    (axes,) = figure.axes
    assert thresholds(axes) == [1.5]
    assert axes.get_xlabel() == "x = mean |gradient| of 4 batches / learning rate"


@pytest.mark.parametrize(
    ("rule", "options"),
    [("random", {"threshold": None}), ("weight_magnitude", {}), ("kde_otsu", {"threshold": None})],
)
def test_no_threshold_of_gradients(tmp_path, rule, options):
    run, mask = read(tmp_path, rule=rule, **options)
    for figure in (gradients.draw_layers(run, mask), gradients.draw_all(run, mask)):
        assert labels(figure)[1] == f"rule {rule}: no threshold of gradients"
        for axes in figure.axes:
            assert not thresholds(axes)
            assert not shades(axes)


def test_a_threshold_a_leaf(tmp_path):
    run, mask = read(tmp_path, rule="mean_threshold", per_leaf=True)
    figure = gradients.draw_layers(run, mask)
    assert [thresholds(axes) for axes in figure.axes] == [[0.5], [1.5]]  # first and last leaf
    assert "threshold t of the leaf" in labels(figure)
    (axes,) = gradients.draw_all(run, mask).axes
    assert not thresholds(axes)


def test_an_estimate_of_nothing(tmp_path):
    # No spread: everything that the rule reports is NaN, and nothing is frozen.
    content = mask_content(threshold=None, estimate=True)
    for key in ("region", "grid", "density", "subrange_means", "subrange_shares", "bandwidth"):
        content[key] = np.full_like(content[key], math.nan)
    figure = gradients.draw_all(*read(tmp_path, content))
    assert len(figure.axes) == 1
    assert "no threshold of gradients" in labels(figure)[1]


def test_gradients_that_are_all_zero_or_not_finite(tmp_path):
    content = mask_content()
    content["hist_counts"] = np.zeros_like(content["hist_counts"])
    content["leaf_zeros"] = content["leaf_sizes"] - 1
    content["leaf_nonfinite"] = np.ones_like(content["leaf_sizes"])
    content["threshold"] = 0.0  # has no place on a logarithmic axis
    run, mask = read(tmp_path, content, rule="fixed_threshold")
    (axes,) = gradients.draw_all(run, mask).axes
    assert "5 not finite" in axes.get_title()
    assert [text.get_text() for text in axes.texts] == ["no gradient that is finite and not 0"]
    assert not thresholds(axes)
    gradients.draw_layers(run, mask).draw_without_rendering()


def test_the_smallest_few_are_counted_not_shown(tmp_path):
    content = mask_content()
    content["hist_counts"][4, 5] += 1
    run, mask = read(tmp_path, content)
    (axes,) = gradients.draw_all(run, mask).axes
    left = axes.get_xlim()[0]
    assert left > EDGES[6]
    expected = mask.counts.sum(0)[EDGES[1:] <= left].sum()
    assert [text.get_text() for text in axes.texts] == [f"◂ {expected:,} smaller"]
    assert 1 <= expected <= 0.002 * mask.counts.sum()


@pytest.mark.parametrize("group", ["channel", "leaf"])
def test_the_threshold_of_means_is_none_of_single_gradients(tmp_path, group):
    plural = {"channel": "channels", "leaf": "leaves"}[group]
    run, mask = read(tmp_path, estimate=True, freeze={"granularity": group, "batches": 4})
    histogram, density, subranges = gradients.draw_all(run, mask).axes
    assert [thresholds(axes) for axes in (histogram, density, subranges)] == [[], [1.5], [1.5]]
    assert shades(histogram) == []
    assert histogram.get_xlabel() == "x = mean |gradient| of 4 batches / learning rate"
    wanted = f"x = mean |gradient| of a {group} and 4 batches / learning rate"
    assert subranges.get_xlabel() == f"mean of the sub-range, {wanted}"
    figure = gradients.draw_layers(run, mask)
    assert [thresholds(axes) for axes in figure.axes] == [[]] * len(figure.axes)
    assert labels(figure)[1] == f"rule kde_otsu of {plural}: t = 1.5 for means"
    assert run.rule_title == f"rule kde_otsu of {plural}"

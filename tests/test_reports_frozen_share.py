import itertools

import numpy as np
import pytest

from pb_jax.reports import frozen_share
from pb_jax.reports.run_folder import read_mask, read_run
from tests.synthetic_run import deep, write_mask, write_run


def draw(workdir, **options):
    write_run(workdir)
    mask = read_mask(write_mask(workdir, **options), rule="kde_otsu")
    return mask, frozen_share.draw(read_run(workdir), mask)


def bars(axes):
    """Row and length of the coloured bars, which lie on grey ones."""
    boxes = axes.containers[1].patches
    return {round(box.get_y() + box.get_height() / 2): box.get_width() for box in boxes}


def test_a_small_network(tmp_path):
    mask, figure = draw(tmp_path)
    kernels, biases, norm = figure.axes
    share = 100 * mask.frozen_fraction
    assert figure.get_suptitle() == (
        f"toy on noise: {share:.1f} % of 1,124 weights frozen, mask of step 201"
    )
    assert [text.get_text() for text in kernels.get_yticklabels()] == ["conv1", "bn1", "fc"]
    assert kernels.get_ylim()[0] > kernels.get_ylim()[1]  # the input is at the top
    expected = 100 * mask.frozen / mask.sizes
    assert bars(kernels) == pytest.approx({0: expected[0], 2: expected[4]})
    assert bars(biases) == pytest.approx({0: expected[1]})
    assert bars(norm) == pytest.approx({1: 100 * mask.frozen[2:4].sum() / 16})
    assert kernels.get_title().startswith("kernels: ")
    assert kernels.get_title().endswith(" % of 1,100")
    assert norm.get_title().startswith("batch norm: ")
    assert [text.get_text() for text in kernels.texts] == ["200", "900"]
    assert kernels.get_ylabel() == "layer, from the input"
    for axes in figure.axes:
        assert axes.get_xlabel() == "frozen weights (%)"
        assert axes.lines[0].get_xdata()[0] == pytest.approx(share)
    colours = {axes.containers[1].patches[0].get_facecolor() for axes in figure.axes}
    assert len(colours) == 3


def test_a_deep_network_by_blocks(tmp_path):
    names = deep(54)
    mask, figure = draw(tmp_path, sizes=names)
    assert len(mask.names) > 320
    kernels = figure.axes[0]
    rows = [text.get_text() for text in kernels.get_yticklabels()]
    assert len(rows) == 57
    assert kernels.get_ylabel() == "block, from the input"
    row = rows.index("layer2.1")
    members = [name.startswith("layer2.1.") and "conv" in name for name in mask.names]
    assert np.sum(members) == 2
    assert bars(kernels)[row] == pytest.approx(100 * mask.frozen[members].sum() / 4608)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in kernels.get_yticklabels()]
    boxes.sort(key=lambda box: -box.y0)
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_a_deep_network_without_blocks_keeps_its_height(tmp_path):
    sizes = {f"conv{i}.kernel": 4 for i in range(400)}
    _, figure = draw(tmp_path, sizes=sizes)
    (axes,) = figure.axes
    assert figure.get_figheight() < 16
    assert len(bars(axes)) == 400
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[:2] == ["conv0", "conv6"]
    assert not axes.texts
    assert axes.get_xlim() == (0, 100)

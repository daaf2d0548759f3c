import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from pb_jax.study import cells_of, figures, read, read_result, write_report
from tests.synthetic_study import write_study


def cells(folder):
    return cells_of([read_result(folder, run) for run in read(folder).runs])


def panels(figure):
    return {axes.get_title().split(";")[0]: axes for axes in figure.axes}


def test_the_files_are_written_and_are_images(tmp_path):
    write_study(tmp_path, seeds=2)
    paths = [path for path in write_report(tmp_path) if path.suffix == ".png"]
    assert [path.name for path in paths] == ["curves.png", "accuracy_frozen.png"]
    assert all(imread(path).std() > 0.01 for path in paths)


def test_curves_show_means_bands_and_differences(tmp_path):
    write_study(tmp_path, seeds=3)
    figure = figures.draw_curves("toy", cells(tmp_path))
    shown = panels(figure)
    means = {line.get_label(): line for line in shown["loss"].lines if line.get_linewidth() > 1}
    assert set(means) == {"none", "kde_otsu", "random"}
    np.testing.assert_allclose(means["none"].get_ydata(), 2.2 / np.arange(1, 7))
    accuracy = shown["accuracy on the test split"]
    assert len(accuracy.collections) == 3, "a band a rule"
    band = accuracy.collections[0].get_paths()[0].vertices
    heights = band[band[:, 0] == 6][:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [95.0, 97.0])
    difference = shown["minus full training, same seed"]
    lines = [line for line in difference.lines if len(line.get_ydata()) == 6]
    finals = sorted(line.get_ydata()[-1] for line in lines)
    np.testing.assert_allclose(finals, [-2.85, -0.95], atol=1e-9)
    assert "mean ± sd of 3 seeds" in figure.get_suptitle()


def test_one_seed_has_no_band(tmp_path):
    write_study(tmp_path, seeds=1)
    figure = figures.draw_curves("toy", cells(tmp_path))
    assert all(not axes.collections for axes in figure.axes)
    assert "one seed" in figure.get_suptitle()


def test_of_many_rules_those_of_most_seeds_are_drawn(tmp_path):
    once = ",".join(f"kde_otsu:bins={n},label=bins_{n}" for n in range(10, 22))
    study = write_study(tmp_path, f"{once},none,kde_otsu,random", seeds=2)
    for run in study.runs:
        if run.label.startswith("bins") and run.seed == 1:
            shutil.rmtree(tmp_path / run.folder)
    figure = figures.draw_curves("toy", cells(tmp_path))
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {*(f"bins_{n}" for n in range(10, 19)), "none", "kde_otsu", "random"}
    assert figure.get_suptitle().endswith("1 to 2 seeds, 12 of 15 rules")


def test_accuracy_against_share_has_every_cell(tmp_path):
    write_study(tmp_path, seeds=2)
    (axes,) = figures.draw_accuracy("toy", cells(tmp_path)).axes
    means = {
        container.get_label(): container.lines[0].get_xydata()[0] for container in axes.containers
    }
    np.testing.assert_allclose(means["none"], [0, 95.5])
    np.testing.assert_allclose(means["kde_otsu"], [76.05 - 0.5, 94.55])
    np.testing.assert_allclose(means["random"], [76.05 + 0.5, 92.65])


def test_a_grid_has_curves_of_each_rule_and_its_sensitivity(tmp_path):
    write_study(tmp_path, seeds=2, grid=["freeze.coverage=0.99,0.8,0.9"])
    paths = {path.name for path in write_report(tmp_path) if path.suffix == ".png"}
    assert paths == {
        "curves_kde_otsu.png",
        "curves_random.png",
        "accuracy_frozen.png",
        "sensitivity_coverage.png",
    }
    groups = figures._by_value(cells(tmp_path), "freeze.coverage")
    figure = figures.draw_sensitivity("toy", "freeze.coverage", groups)
    threshold, frozen, accuracy = figure.axes
    line = threshold.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0.8, 0.08], [0.9, 0.09], [0.99, 0.099]])
    line = frozen.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata()[:, 1], [64.05, 72.05, 79.25])
    assert len(accuracy.containers) == 2


@pytest.mark.parametrize("rules", ["none", "kde_otsu"])
def test_a_single_rule_can_be_drawn(tmp_path, rules):
    write_study(tmp_path, rules, seeds=1)
    assert len(write_report(tmp_path)) == 4

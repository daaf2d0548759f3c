import json

import numpy as np
import pytest

from pb_jax.reports import curves
from pb_jax.reports.run_folder import read_run
from tests.synthetic_run import write_mask, write_run


def drawn(workdir, masks=(), frozen=(1.5,), **options):
    write_run(workdir, masks=masks, **options)
    for epoch, threshold in zip(masks, frozen, strict=True):
        write_mask(workdir, epoch=epoch, threshold=threshold)
    run = read_run(workdir)
    return run, curves.draw(run)


def labels(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def verticals(axes):
    """Places of the vertical lines."""
    return [
        line.get_xdata()[0]
        for line in axes.lines
        if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 1]
    ]


def test_a_run_with_a_mask(tmp_path):
    run, figure = drawn(tmp_path, masks=[3])
    assert figure.get_suptitle() == "toy on noise, rule kde_otsu: loss and accuracy"
    loss, accuracy = figure.axes
    assert (loss.get_title(), accuracy.get_title()) == ("loss", "accuracy")
    assert loss.get_ylabel() == "cross-entropy (nats)"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert labels(figure) == [
        "training (mean over the epoch's batches)",
        "validation (the test split, as in the paper)",
        "weights are frozen",
        "mask made by the first batch of epoch 3",
    ]
    epochs = np.arange(1, 7)
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), epochs)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), 2 / epochs)
    np.testing.assert_allclose(loss.lines[1].get_ydata(), 2.2 / epochs)
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 100 - 50 / epochs)
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), 100 - 60 / epochs)
    share = f"{100 * run.masks[0].frozen_fraction:.1f} % frozen"
    for axes in figure.axes:
        assert axes.get_xlabel() == "epochs trained"
        assert verticals(axes) == [2]  # epoch 3 begins when 2 epochs have been trained
        (shade,) = axes.patches
        assert (shade.get_x(), shade.get_width()) == (2, 4)
        assert [text.get_text() for text in axes.texts] == [share]


def test_masks_made_again_and_full_training_after_them(tmp_path):
    run, figure = drawn(tmp_path, masks=[2, 3, 4], frozen=[1.5, 2.0, 1.0], freeze={"stop_epoch": 6})
    shares = [f"{100 * mask.frozen_fraction:.1f}" for mask in run.masks]
    loss = figure.axes[0]
    assert verticals(loss) == [1, 2, 3, 5]
    assert (loss.patches[0].get_x(), loss.patches[0].get_width()) == (1, 4)
    assert labels(figure)[3:] == [
        "mask made by the first batch of epoch 2",
        "mask made again (2 times)",
        "full training again from epoch 6 on",
    ]
    assert loss.texts[0].get_text() == f"{shares[2]} to {shares[1]} % frozen"


def test_full_training_that_the_run_has_not_reached_yet(tmp_path):
    _, figure = drawn(tmp_path, masks=[2], freeze={"stop_epoch": 9})
    assert verticals(figure.axes[0]) == [1]
    assert figure.axes[0].patches[0].get_width() == 5


def test_full_training(tmp_path):
    _, figure = drawn(tmp_path, rule="none", frozen=())
    assert "full training" in figure.get_suptitle()
    assert len(labels(figure)) == 2
    assert not verticals(figure.axes[0])
    assert not figure.axes[0].texts


@pytest.mark.parametrize(("epochs", "marker"), [(1, "o"), (110, "None")])
def test_a_single_epoch_can_be_seen(tmp_path, epochs, marker):
    _, figure = drawn(tmp_path, epochs=epochs, frozen=())
    assert figure.axes[0].lines[0].get_marker() == marker


@pytest.mark.parametrize(("epoch", "side"), [(2, "left"), (6, "right")])
def test_the_note_stays_inside(tmp_path, epoch, side):
    _, figure = drawn(tmp_path, masks=[epoch])
    figure.draw_without_rendering()
    for axes in figure.axes:
        (note,) = axes.texts
        assert note.get_horizontalalignment() == side
        inside, box = axes.get_window_extent(), note.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1


def test_a_captioner_has_a_panel_of_its_bleu_and_a_validation_split(tmp_path):
    write_run(tmp_path, masks=[3])
    write_mask(tmp_path, epoch=3, threshold=1.5)
    path = tmp_path / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    scored = [record | {"val_bleu4": record["epoch"] / 100} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in scored))
    figure = curves.draw(read_run(tmp_path))
    assert figure.get_suptitle() == "toy on noise, rule kde_otsu: loss, accuracy and BLEU"
    loss, accuracy, bleu = figure.axes
    assert accuracy.get_ylabel() == "next word right (%)"
    np.testing.assert_allclose(bleu.lines[0].get_ydata(), np.arange(1, 7) / 100)
    assert verticals(bleu) == verticals(loss) == [2]
    assert "validation split" in labels(figure)

import json

import numpy as np
import pytest
from PIL import Image

from pb_jax.errors import UserError
from pb_jax.reports import captions
from pb_jax.reports.__main__ import main

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def alphas(words, positions=6):
    weights = np.random.default_rng(1).random((words, positions)) + 0.1
    return weights / weights.sum(1, keepdims=True)


def panels(figure):
    return {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}


def test_a_panel_for_each_word():
    words = ["a", "dog", "runs"]
    figure = captions.draw_attention(PICTURE, words, alphas(3), (2, 3))
    assert figure.get_suptitle() == "a dog runs"
    drawn = panels(figure)
    assert list(drawn) == ["the picture", *words]
    np.testing.assert_array_equal(drawn["the picture"], PICTURE)
    assert all(image.shape == PICTURE.shape for image in drawn.values())


@pytest.mark.parametrize("position", range(6))
def test_it_glows_where_the_attention_is(position):
    weights = np.full((1, 6), 0.01)
    weights[0, position] = 0.95
    image = panels(captions.draw_attention(PICTURE // 2, ["dog"], weights, (2, 3)))["dog"]
    yellow = np.asarray(image, float)[:, :, 0] - np.asarray(image, float)[:, :, 2]
    cells = yellow.reshape(2, 45, 3, 40).mean((1, 3)).ravel()
    assert cells.argmax() == position
    assert cells[position] > 3 * np.delete(cells, position).max()


def test_each_word_has_its_own_scale():
    weak = alphas(1) * 0.01
    one, other = (
        panels(captions.draw_attention(PICTURE, ["a"], weights, (2, 3)))["a"]
        for weights in (weak, alphas(1))
    )
    np.testing.assert_allclose(np.asarray(one, int), other, atol=1)


def test_without_attention_nothing_glows():
    image = panels(captions.draw_attention(PICTURE, ["a"], np.zeros((1, 6)), (2, 3)))["a"]
    assert np.ptp(np.asarray(image), axis=2).max() == 0


@pytest.mark.parametrize(
    ("shape", "count"),
    [((480, 640, 3), 0), ((48, 48, 3), 5), ((2000, 100, 3), 6), ((1, 900, 3), 7), ((9, 9, 3), 29)],
)
def test_files_of_any_caption_and_picture(tmp_path, shape, count):
    words = [f"word{i}" for i in range(count)]
    picture = np.full(shape, 127, np.uint8)
    path = captions.attention_figure(
        picture, words, alphas(count, 49), (7, 7), tmp_path / "caption.png"
    )
    assert path == tmp_path / "caption.png"
    with Image.open(path) as image:
        image.load()
        assert image.width == 1000
        assert 150 < image.height < 2600


def test_dollars_are_no_mathematics():
    figure = captions.draw_attention(PICTURE, ["$_", "_$", "$^$"], alphas(3), (2, 3))
    figure.draw_without_rendering()  # as mathematics it would be an error


@pytest.mark.parametrize(
    ("picture", "weights", "message"),
    [
        (PICTURE, alphas(2), "alphas must be"),
        (PICTURE, alphas(1, 7), "alphas must be"),
        (PICTURE.astype(float), alphas(1), "image must be"),
        (PICTURE[:, :, 0], alphas(1), "image must be"),
    ],
)
def test_what_does_not_fit(picture, weights, message):
    with pytest.raises(ValueError, match=message):
        captions.draw_attention(picture, ["a"], weights, (2, 3))


def write_run(folder, test=(0.5, 0.4, 0.3, 0.2), val=(0.6, 0.5, 0.4, 0.3), frozen=0.0):
    folder.mkdir()
    scores = {f"test_bleu{n}": value for n, value in enumerate(test, 1)}
    scores |= {f"val_bleu{n}": value for n, value in enumerate(val, 1)}
    (folder / "summary.json").write_text(json.dumps({**scores, "frozen_fraction": frozen}))
    return folder


def test_bars_of_several_runs(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        captions.style, "save", lambda figure, path: drawn.update(figure=figure) or path
    )
    runs = {
        "full": write_run(tmp_path / "full"),
        "PB": write_run(tmp_path / "pb", test=(0.51, 0.41, 0.31, 0.0), frozen=0.618),
    }
    captions.bleu_figure(runs, tmp_path / "bleu.png")
    (axes,) = drawn["figure"].axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[0.5, 0.4, 0.3, 0.2], [0.51, 0.41, 0.31, 0.0]]
    labels = [bars.get_label() for bars in axes.containers]
    assert labels == ["full (nothing frozen)", "PB (61.8 % of the weights frozen)"]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        f"BLEU-{n}" for n in range(1, 5)
    ]
    assert [text.get_text() for text in axes.texts][:2] == ["0.500", "0.400"]
    captions.bleu_figure(runs, tmp_path / "bleu.png", split="val")
    assert drawn["figure"].axes[0].containers[0][3].get_height() == 0.3


def test_the_command(tmp_path, capsys):
    folders = [f"run {n}=={write_run(tmp_path / str(n))}" for n in range(7)]
    output = tmp_path / "figure.png"
    arguments = [folder.replace("==", "=") for folder in folders]
    assert main(["bleu", *arguments, str(tmp_path / "0"), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as image:
        assert image.width == 1000


def test_what_is_no_finished_captioner(tmp_path, capsys):
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier/summary.json").write_text('{"final_val_accuracy": 0.9}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/summary.json").write_text("[1")
    for name, message in [
        ("absent", "not finished"),
        ("classifier", "captioner"),
        ("damaged", "damaged"),
    ]:
        with pytest.raises(UserError, match=message):
            captions.bleu_figure({"a": tmp_path / name}, tmp_path / "bleu.png")
        assert main(["bleu", str(tmp_path / name), "--output", str(tmp_path / "bleu.png")]) == 2
        assert message in capsys.readouterr().err
    write_run(tmp_path / "fine")
    missing = tmp_path / "no/bleu.png"
    assert main(["bleu", str(tmp_path / "fine"), "--output", str(missing)]) == 2
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(ValueError, match="split must be"):
        captions.bleu_figure({}, tmp_path / "bleu.png", split="train")

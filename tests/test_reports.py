import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pb_jax.errors import UserError
from pb_jax.reports import style, write_figures
from pb_jax.reports.__main__ import main
from tests.synthetic_run import deep, write_mask, write_run


def names(workdir, written):
    assert all(path.parent == workdir / "figures" for path in written)
    assert sorted(path.name for path in (workdir / "figures").iterdir()) == sorted(
        path.name for path in written
    )
    return [path.name for path in written]


def test_figures_are_whole_pngs_with_something_on_them(tmp_path):
    write_run(tmp_path, masks=[3])
    write_mask(tmp_path, sizes=deep(3), estimate=True)
    written = write_figures(tmp_path)
    assert names(tmp_path, written) == [
        "curves.png",
        "layer_gradients_step_201.png",
        "gradients_step_201.png",
        "frozen_share_step_201.png",
    ]
    for path in written:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == 1000
            assert 250 <= image.height <= 1600
            pixels = np.asarray(image.convert("L"))
        assert (pixels[0] == 255).all()
        for quarter in np.array_split(pixels, 4, axis=1):
            assert (quarter < 128).mean() > 0.001


def test_of_several_masks_the_first_is_shown_by_layers(tmp_path):
    write_run(tmp_path, rule="random", masks=[2, 5, 6])
    for epoch in (2, 5, 6):
        write_mask(tmp_path, epoch=epoch, threshold=None)
    kinds = ("gradients", "frozen_share")
    assert names(tmp_path, write_figures(tmp_path)) == [
        "curves.png",
        "layer_gradients_step_101.png",
        *[f"{kind}_step_{step}.png" for step in (101, 401, 501) for kind in kinds],
    ]


def test_full_training_has_curves_only(tmp_path):
    write_run(tmp_path, rule="none")
    assert names(tmp_path, write_figures(str(tmp_path))) == ["curves.png"]


def test_nothing_is_written_from_damaged_files(tmp_path):
    write_run(tmp_path, masks=[3])
    write_mask(tmp_path).write_bytes(b"")
    with pytest.raises(UserError, match=r"mask_step_201.npz is damaged"):
        write_figures(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_figures_cannot_be_written(tmp_path):
    write_run(tmp_path)
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write figures into .*figures: File exists"):
        write_figures(tmp_path)


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    write_run(tmp_path)
    (before,) = write_figures(tmp_path)
    content = before.read_bytes()

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_figures(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curves.png"]
    assert before.read_bytes() == content


def test_the_users_style_is_left_alone_and_has_no_say(tmp_path):
    write_run(tmp_path / "a", masks=[3])
    write_run(tmp_path / "b", masks=[3])
    plain = write_figures(tmp_path / "a")[0].read_bytes()
    theirs = {"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 7, "lines.linewidth": 9}
    with mpl.rc_context(theirs):
        before = dict(mpl.rcParams)
        assert write_figures(tmp_path / "b")[0].read_bytes() == plain
        assert dict(mpl.rcParams) == before


def test_colours_differ_also_in_grey():
    def lightness(colour):
        red, green, blue = mpl.colors.to_rgb(colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = sorted(map(lightness, (style.LINE, style.DATA, style.FROZEN, style.REGION)))
    assert np.diff(shades).min() > 0.1


def test_the_command_line(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert main(["figures", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / run / "figures" / "curves.png") for run in "ab"]
    assert err == ""


def test_an_error_of_one_run_does_not_keep_the_others(tmp_path, capsys):
    write_run(tmp_path / "b")
    assert main(["figures", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'b' / 'figures' / 'curves.png'}\n"
    assert err == (
        f"error: there is no folder {tmp_path / 'a'}; give the --workdir of a run of train.py\n"
    )


@pytest.mark.parametrize("arguments", [[], ["figures"], ["--unknown"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m pb_jax.reports" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["figures", "--help"])
    assert "curves.png" in capsys.readouterr().out


def test_matplotlib_waits_until_it_is_needed_and_pyplot_for_ever(tmp_path):
    write_run(tmp_path)
    program = (
        "import sys, pb_jax.reports\n"
        "assert 'matplotlib' not in sys.modules and 'flax' not in sys.modules\n"
        f"pb_jax.reports.write_figures({str(tmp_path)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)

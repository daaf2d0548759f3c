import sys

import pytest

from pb_jax.data.progress import Progress


@pytest.mark.parametrize("enabled", [True, False])
def test_without_a_terminal_each_step_is_one_line(capsys, enabled):
    progress = Progress(enabled)
    progress.say("first")
    with progress.bar("second", total=3, unit="images") as bar:
        bar.update(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("first\nsecond\n" if enabled else "")


def test_in_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(enabled=True).bar("fetching", total=2048, unit="B") as bar:
        bar.update(2048)
        bar.refresh()
    assert "2.00k/2.00k" in capsys.readouterr().err
    with Progress(enabled=False).bar("fetching", total=2, unit="B") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""

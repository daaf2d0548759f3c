import io
import re

import pytest

from pb_jax.training.progress import Progress, clock
from tests.test_training_metrics import record


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def plain(text):
    return re.sub(r"\x1b\[\d+m", "", text)


def shown(terminal):
    """What stands in the line now."""
    return plain(terminal.getvalue()).split("\x1b[K")[-1]


def test_a_pipe_gets_plain_lines():
    stream = io.StringIO()
    progress = Progress(stream, epochs=3, steps=10, batch_size=5)
    progress.status("compiling")
    progress.begin(1)
    assert not progress.due()
    progress.end(record(1, threshold=None))
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("epoch 1/3  train 0.5000 50.00%  val 0.5000 50.00%")
    assert "\x1b" not in stream.getvalue()
    assert " t " not in stream.getvalue()


def test_a_terminal_gets_a_moving_line(terminal):
    progress = Progress(terminal, epochs=3, steps=10, batch_size=5)
    progress.begin(1)
    progress.update(5, loss=0.25, accuracy=0.5)
    assert re.match(
        r"epoch 1/3 ━{5}─{5} 5/10  loss 0.250  50.0%  [\d,]+/s  left \d+:\d\d$", shown(terminal)
    )
    assert "in all" not in shown(terminal)  # no epoch has shown how long one takes
    assert "frozen" not in shown(terminal)
    progress.end(record(1, seconds=60.0))
    progress.begin(2)
    progress.frozen = 0.75
    progress.update(10, loss=0.25, accuracy=0.5)
    assert "left 0:00, 1:00 in all" in shown(terminal)  # the third epoch is left
    assert "frozen 75.0%" in shown(terminal)
    progress.close()
    assert shown(terminal) == ""


def test_lines_that_stay_replace_the_moving_one(terminal):
    progress = Progress(terminal, epochs=3, steps=10, batch_size=5)
    progress.status("compiling")
    progress.say("hello")
    assert shown(terminal) == "hello\n"


def test_narrow_terminals_and_no_color(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    progress = Progress(terminal, epochs=3, steps=10, batch_size=5)
    progress.begin(1)
    progress.update(5, loss=0.25, accuracy=0.5)
    assert len(shown(terminal)) == 29
    assert "━" not in shown(terminal)
    assert "\x1b[3" not in terminal.getvalue()


def test_due_once_a_second(terminal, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(terminal, epochs=3, steps=10, batch_size=5)
    progress.begin(1)
    times = []
    for tick in range(40):
        now[0] = 100 + tick / 10
        if progress.due():
            times.append(tick)
            progress.update(1, 0.0, 0.0)
    assert times == [3, 13, 23, 33]


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]

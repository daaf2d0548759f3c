"""What README says runs, runs."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_runs_and_freezes():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    last = printed.getvalue().splitlines()[-1]
    share, threshold = re.fullmatch(r"all .* ([\d.]+)% ([\d.]+)", last).groups()
    assert 10 < float(share) < 95
    assert float(threshold) > 0


def test_paths_and_configs_that_it_names_exist():
    for path in re.findall(r"\]\((?!http)([\w./-]+)\)|--config (configs/\w+\.py)", README):
        assert (ROOT / "".join(path)).exists(), path


def test_the_first_commands_are_those_of_a_fresh_machine():
    assert "pip install -e '.[train]' && python train.py --config configs/digits_pb.py" in README
    assert "pip install -e '.[test]' && pytest" in README

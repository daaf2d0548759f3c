import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import study
import train
from pb_jax.study import configuration, read
from pb_jax.study.__main__ import main as tables
from pb_jax.training import resolve
from tests.synthetic_study import process, write_study

ROOT = Path(study.__file__).parent
DIGITS = str(ROOT / "configs/digits_pb.py")
pytestmark = pytest.mark.filterwarnings(
    # ml_collections imports config files that way
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def as_it_was():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(capsys, *arguments):
    status = study.main(["study.py", *arguments])
    return status, *capsys.readouterr()


@pytest.fixture
def pretend(monkeypatch):
    """Let a small program stand for train.py; returns the commands that were meant for it."""
    commands = []

    def command(folder, whole, run, share, source):
        commands.append(real(folder, whole, run, share, source))
        return process(folder, run, share)

    real = study.command
    monkeypatch.setattr(study, "command", command)
    return commands


def test_a_study_ends_in_tables_and_figures(tmp_path, capsys, pretend):
    arguments = [f"--config={DIGITS}", "--rules=none,kde_otsu,random", "--seeds=2"]
    arguments += ["--workdir", str(tmp_path / "here"), "--config.epochs=3", "--jobs=2"]
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert "6 runs in" in out
    assert "| kde_otsu | 2 | 90.00 ± 0.00 | +0.00 ± 0.00 |" in out
    for name in ("table.md", "table.json", "figures/curves.png", "figures/accuracy_frozen.png"):
        assert str(tmp_path / "here" / name) in out
        assert (tmp_path / "here" / name).exists()
    assert len(pretend) == 6
    status, out, _ = run(capsys, *arguments)
    assert "6 of 6 runs are finished already" in out
    assert len(pretend) == 6


def test_each_command_line_gives_the_runs_configuration(tmp_path, capsys, pretend):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs.digits_pb import get_config as digits\n"
        "def get_config():\n"
        "    config = digits()\n"
        "    config.freeze.coverage = 0.9\n"
        "    config.freeze.stop_epoch = 20\n"
        "    return config\n"
    )
    arguments = [f"--config={config}", "--seeds=1", f"--workdir={tmp_path / 'study'}"]
    arguments += ["--config.epochs=3", "--config.optimizer.boundaries=(2,)"]
    arguments += ["--grid=freeze.bandwidth=scott,0.5", "--grid=freeze.stop_epoch=none,30"]
    rules = "none,kde_otsu,random,quantile:frozen=0.5,largest=true,scope=leaf,label=q"
    assert run(capsys, *arguments, f"--rules={rules}")[0] == 0
    whole = read(tmp_path / "study")
    assert len(pretend) == len(whole.runs) == 1 + 4 + 4 + 2
    seen = []
    for run_, line in zip(whole.runs, pretend, strict=True):
        share = 0.8 if run_.share_of else None
        assert line[:2] == [sys.executable, str(ROOT / "train.py")]
        parsed = train.parse(line[1:])
        assert parsed.workdir == tmp_path / "study" / run_.folder
        assert resolve(parsed.config) == configuration(whole.base, run_, share)
        seen.append(resolve(parsed.config)["freeze"])
    assert [freeze["coverage"] for freeze in seen[:2]] == [None, 0.9]
    assert seen[0]["stop_epoch"] == 20
    assert {freeze["stop_epoch"] for freeze in seen[1:]} == {None, 30}
    assert "--config.freeze.coverage=None" in pretend[0]


def test_runs_that_share_their_start_are_told_where_it_is(tmp_path, capsys, pretend):
    arguments = [f"--config={DIGITS}", "--seeds=1", f"--workdir={tmp_path}", "--config.epochs=4"]
    rules = "--rules=none,kde_otsu,random:frozen=0.5,start_epoch=2"
    assert run(capsys, *arguments, rules, "--share-start")[0] == 0
    start = tmp_path / "starts/epochs=2/seed_0"
    commands = {train.parse(line[1:]).workdir: train.parse(line[1:]) for line in pretend}
    assert resolve(commands[start].config)["epochs"] == 2
    assert resolve(commands[start].config)["freeze"]["rule"] == "none"
    sources = {path.parent.name: command.start_from for path, command in commands.items()}
    assert sources.pop("epochs=2") is None
    alone = "random_frozen=0.5_start_epoch=2"
    assert sources == {"none": start, "kde_otsu": start, alone: None}


def test_a_failed_run_gives_status_1_and_a_table_of_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        study,
        "command",
        lambda folder, whole, run, share, source: process(
            folder, run, share, "fail" if run.rule == "kde_otsu" else ""
        ),
    )
    arguments = [f"--config={DIGITS}", "--rules=none,kde_otsu", "--seeds=1", "--config.epochs=3"]
    status, out, err = run(capsys, *arguments, f"--workdir={tmp_path}")
    assert status == 1
    assert "failed: kde_otsu, seed 0: exit status 3" in err
    assert "| none | 1 | 90.00 |" in out
    assert "- kde_otsu, seed 0: missing" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules=none"], "say which experiment with --config"),
        ([f"--config={DIGITS}"], "say which rules to compare"),
        ([f"--config={DIGITS}", "--rules=kde_otzu"], "unknown rule 'kde_otzu'; did you"),
        ([f"--config={DIGITS}", "--rules=none", "--grid=epoch=1"], "did you mean 'epochs'"),
        ([f"--config={DIGITS}", "--rules=none", "--seeds=x"], "argument --seeds: invalid int"),
        ([f"--config={DIGITS}", "--rules=none", "--jobs=0"], "--jobs 0 is not allowed"),
        ([f"--config={DIGITS}", "--rules=none", "--config.epoch=1"], "did you mean 'epochs'"),
        ([f"--config={DIGITS}", "--rules=none", "--sedes=1"], "sedes"),
        (
            [f"--config={DIGITS}", "--rules=none", "--share-start", "--together=map"],
            "leave --together out",
        ),
        (
            [f"--config={DIGITS}", "--rules=none", "--together=map", "--config.mesh.data=2"],
            "--together is for one device",
        ),
        (
            [f"--config={DIGITS}", "--rules=none", "--config.distributed=true"],
            "a study starts all runs from one process",
        ),
        (
            [f"--config={DIGITS}", "--rules=none", "--grid=model.name=lenet5,lenet"],
            "unknown model.name 'lenet'; did you mean 'lenet5'",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, capsys, arguments, message):
    status, out, err = run(capsys, *arguments, f"--workdir={tmp_path / 'x'}")
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_help_says_how(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for flag in (
        "--config",
        "--rules",
        "--seeds",
        "--grid",
        "--workdir",
        "--jobs",
        "--share-start",
    ):
        assert f"\n  {flag} " in out


def test_tables_are_made_again_from_the_folder(tmp_path, capsys):
    write_study(tmp_path / "one", seeds=2)
    assert tables(["tables", str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(tmp_path / "one/table.md")
    assert f"there is no {tmp_path / 'two' / 'study.json'}" in err


@pytest.mark.slow
def test_a_real_study_stopped_and_resumed(tmp_path):
    """Stopped in the middle, then the same command: as if nothing had been."""
    arguments = [sys.executable, str(ROOT / "study.py"), f"--config={DIGITS}", "--seeds=1"]
    arguments += ["--rules=none,kde_otsu,random", f"--workdir={tmp_path}", "--config.epochs=4"]
    arguments += ["--share-start"]
    arguments += ["--config.dataset.limit_train=200", "--config.dataset.limit_eval=100"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2/4"):
            break
    process.terminate()
    process.communicate(timeout=100)
    assert process.returncode == 143
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 runs are finished already" in done.stdout
    content = json.loads((tmp_path / "table.json").read_text())
    shares = {run["rule"]: run["frozen_fraction"] for run in content["runs"]}
    assert shares["none"] == 0
    assert 0.3 < shares["kde_otsu"] < 1
    assert shares["random"] == shares["kde_otsu"], "the same number of weights"

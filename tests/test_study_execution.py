import io
import os
import signal
import subprocess
import threading
import time

import pytest

from pb_jax.study import Executor, execution, starts_of
from pb_jax.training import metrics
from tests.synthetic_study import plan, process, write_run


def execute(folder, runs, modes=None, jobs=1, epochs=3, starts=None):
    """Run with the program that stands for train.py; returns failures, commands, output."""
    commands = []

    def command(run, share, source):
        if source is not None:
            assert (source / "summary.json").exists()
            write_lines(folder / run.folder, source)
        commands.append((run.folder, share))
        of = run.settings.get("epochs", epochs)
        return process(folder, run, share, (modes or {}).get(run.folder, ""), of)

    stream = io.StringIO()
    executor = Executor(
        folder,
        command,
        lambda run: run.settings.get("epochs", epochs),
        starts=starts,
        jobs=jobs,
        stream=stream,
    )
    return executor.run(runs), commands, stream.getvalue()


def write_lines(workdir, source):
    """What train.py takes from another run."""
    (workdir / "metrics.jsonl").write_text((source / "metrics.jsonl").read_text())


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_all_runs_are_run_and_shares_are_handed_on(tmp_path, jobs):
    runs = plan("none,random,kde_otsu", seeds=2)
    failures, commands, output = execute(tmp_path, runs, jobs=jobs)
    assert failures == []
    shares = dict(commands)
    assert shares["runs/random/seed_0"] == 0.8
    assert shares["runs/random/seed_1"] == 0.81
    assert shares["runs/none/seed_0"] is None
    assert len(commands) == 6
    assert "6/6" in output
    assert "kde_otsu, seed 1: 90.00%, 81.0% frozen" in output


def test_processes_side_by_side_have_cores_of_their_own(tmp_path):
    cores = len(os.sched_getaffinity(0))
    execute(tmp_path, plan("none", seeds=2), jobs=2)
    logs = [(tmp_path / f"runs/none/seed_{seed}/log.txt").read_text() for seed in (0, 1)]
    assert sum(int(log.split()[1]) for log in logs) == max(cores, 2)
    assert len(os.sched_getaffinity(0)) == cores, "the study's own are untouched"


def test_a_finished_run_is_not_run_again_and_more_epochs_are(tmp_path):
    runs = plan("none,kde_otsu", seeds=1)
    execute(tmp_path, runs)
    failures, commands, output = execute(tmp_path, runs)
    assert (failures, commands) == ([], [])
    assert "2 of 2 runs are finished already" in output
    _, commands, _ = execute(tmp_path, runs, epochs=4)
    assert len(commands) == 2


def test_a_failed_run_is_reported_and_the_rest_completed(tmp_path):
    runs = plan("none,kde_otsu,random", seeds=2)
    failures, commands, output = execute(tmp_path, runs, {"runs/kde_otsu/seed_0": "fail"})
    assert [failure.run.folder for failure in failures] == [
        "runs/kde_otsu/seed_0",
        "runs/random/seed_0",
    ]
    log = tmp_path / "runs/kde_otsu/seed_0/log.txt"
    assert f"exit status 3; its output is in {log}" in failures[0].reason
    assert "takes the frozen share of runs/kde_otsu/seed_0" in failures[1].reason
    assert "error: as was asked for" in output
    assert len(commands) == 5
    failures, commands, _ = execute(tmp_path, runs)
    assert failures == []
    assert [folder for folder, _ in commands] == ["runs/kde_otsu/seed_0", "runs/random/seed_0"]


def test_a_run_that_ends_well_without_a_summary_has_failed(tmp_path):
    runs = plan("none", seeds=1)
    stream = io.StringIO()
    executor = Executor(tmp_path, lambda *_: ["true"], lambda run: 3, stream=stream)
    assert [failure.run for failure in executor.run(runs)] == list(runs)


def test_an_interrupt_ends_the_processes_and_the_same_command_goes_on(tmp_path):
    runs = plan("none,kde_otsu", seeds=1)
    path = tmp_path / "runs/none/seed_0/metrics.jsonl"

    def interrupt():
        while not path.exists() or len(metrics.read(path)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, runs, {"runs/none/seed_0": "hang"})
    thread.join()
    assert "asked to stop" in (path.parent / "log.txt").read_text()
    assert not (tmp_path / "runs/kde_otsu").exists()
    failures, commands, _ = execute(tmp_path, runs)
    assert failures == []
    assert len(commands) == 2
    assert [record["epoch"] for record in metrics.read(path)] == [1, 2, 3]


def test_an_interrupt_while_a_process_starts_ends_it(tmp_path, monkeypatch):
    started = []

    def popen(*args, original=subprocess.Popen, **options):
        started.append(original(*args, **options))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return started[-1]

    monkeypatch.setattr(execution.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, plan("none", seeds=1), {"runs/none/seed_0": "hang"})
    (process,) = started
    assert process.returncode is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_was_finished_elsewhere_gives_its_share(tmp_path):
    runs = plan("kde_otsu,random", seeds=1)
    write_run(tmp_path / "runs/kde_otsu/seed_0", 0.9, 0.625, 0.1, epochs=3)
    _, commands, _ = execute(tmp_path, runs)
    assert commands == [("runs/random/seed_0", 0.625)]


def test_runs_go_on_from_epochs_that_they_share(tmp_path):
    runs = plan("none,kde_otsu,random", seeds=2)
    starts = starts_of({}, runs)
    failures, commands, output = execute(tmp_path, runs, starts=starts, jobs=2)
    assert failures == []
    folders = [folder for folder, _ in commands]
    assert sorted(folders[:2]) == [f"starts/epochs=2/seed_{seed}" for seed in (0, 1)]
    assert len(folders) == 8
    assert "8/8" in output
    for run in runs:
        assert [r["epoch"] for r in metrics.read(tmp_path / run.folder / "metrics.jsonl")] == [
            1, 2, 3,
        ]  # fmt: skip
    _, commands, output = execute(tmp_path, runs, starts=starts)
    assert commands == []
    assert "6 of 6 runs are finished already" in output


def test_without_the_epochs_to_go_on_from_nothing_is_run(tmp_path):
    runs = plan("none,kde_otsu", seeds=1)
    starts = starts_of({}, runs)
    failures, commands, _ = execute(
        tmp_path, runs, {"starts/epochs=2/seed_0": "fail"}, starts=starts
    )
    assert [failure.run.folder for failure in failures[1:]] == [run.folder for run in runs]
    assert "goes on from starts/epochs=2/seed_0" in failures[1].reason
    assert len(commands) == 1

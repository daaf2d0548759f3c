"""Runs as train.py leaves them, without training: by a function, or by a process."""

import json
import sys
from pathlib import Path

from pb_jax.study import Study, base_of, make_plan, parse_grid, parse_rules, settle
from pb_jax.training import default_config

# What stands for train.py: arguments are the run's folder, epochs, frozen share, and what to do.
PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, epochs, frozen, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
frozen = float(frozen)
path = folder / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.exists() else 0
print("cores", len(os.sched_getaffinity(0)), flush=True)
if mode == "fail":
    print("error: as was asked for")
    sys.exit(3)
def stop(*_):
    print("asked to stop", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with path.open("a") as file:
    for epoch in range(done + 1, epochs + 1):
        record = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy",
                                "frozen_fraction", "zero_gradient_fraction", "learning_rate",
                                "examples_per_second"), 0.5)
        record |= {"epoch": epoch, "step": 10 * epoch, "threshold": None, "seconds": 0.01}
        file.write(json.dumps(record) + "\\n")
        file.flush()
        if mode == "hang" and epoch == 2:
            time.sleep(60)
summary = {"final_val_accuracy": 0.9, "best_val_accuracy": 0.95, "frozen_fraction": frozen,
           "threshold": None, "seconds": 1.0, "epochs": epochs, "steps": 10 * epochs}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def process(folder, run, share, mode="", epochs=3):
    """The command that stands for train.py."""
    frozen = {"none": 0.0, "kde_otsu": 0.8 + run.seed / 100}.get(run.rule, share or 0.5)
    arguments = [str(folder / run.folder), str(epochs), str(frozen), mode]
    return [sys.executable, "-I", "-S", "-c", PROGRAM, *arguments]


def plan(rules="none,kde_otsu,random", seeds=2, grid=()):
    return make_plan(default_config(), parse_rules(rules), seeds, parse_grid(grid))


def write_study(folder: Path, rules="none,kde_otsu,random", seeds=2, grid=(), **changes) -> Study:
    """A study whose runs are finished: accuracy and the rest depend on rule, seed and point."""
    config = default_config()
    runs = plan(rules, seeds, grid)
    study = settle(
        folder,
        Study("configs/toy.py", base_of(config) | changes, runs, ("python study.py --rules=x",)),
    )
    for run in runs:
        write_run(folder / run.folder, **numbers(run))
    return study


def numbers(run):
    """What a run of `write_study` has measured."""
    if run.rule == "none":
        return {"accuracy": 0.95 + run.seed / 100, "frozen": 0.0, "threshold": None}
    coverage = run.point.get("freeze.coverage", 0.95)
    loss = {"kde_otsu": 0.01, "random": 0.03}.get(run.rule, 0.02)
    return {
        "accuracy": 0.95 + run.seed / 100 - loss * coverage,
        "frozen": 0.8 * coverage + run.seed / 1000,
        "threshold": None if run.rule == "random" else coverage / 10,
    }


def write_run(workdir: Path, accuracy: float, frozen: float, threshold, epochs: int = 6) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    config = {
        "seed": 0,
        "model": {"name": "lenet5"},
        "dataset": {"name": "mnist", "source_dir": "/home/someone/data", "data_dir": None},
        "freeze": {"rule": "kde_otsu", "stop_epoch": None, "batches": 1},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    records = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": accuracy - 0.5 / epoch + 0.5 / epochs,
            "val_loss": 2.2 / epoch,
            "val_accuracy": accuracy - 0.6 / epoch + 0.6 / epochs,
            "frozen_fraction": frozen if epoch > 2 else 0.0,
            "zero_gradient_fraction": 0.3,
            "threshold": threshold if epoch > 2 else None,
            "learning_rate": 1e-3,
            "examples_per_second": 1000.0,
            "seconds": 10.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    summary = {
        "final_val_accuracy": accuracy,
        "best_val_accuracy": accuracy + 0.001,
        "best_epoch": epochs - 1,
        "frozen_fraction": frozen,
        "threshold": threshold,
        "parameters": 1000,
        "seconds": 10.0 * epochs,
        "epochs": epochs,
        "epochs_asked": epochs,
        "steps": 10 * epochs,
        "device": "cpu",
        "versions": {"jax": "0"},
    }
    (workdir / "summary.json").write_text(json.dumps(summary))

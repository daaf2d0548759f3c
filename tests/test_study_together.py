"""Groups of runs that fail, or need more memory than there is; training itself is replaced."""

import io

import pytest

from pb_jax.errors import UserError
from pb_jax.study import base_of, run_groups
from pb_jax.study import together as module
from tests.synthetic_study import numbers, plan, write_run

RULES = "none,kde_otsu,random,mean_threshold:batches=2"


class Trainer:
    """Stands for `run_together`; `behave` may raise first."""

    def __init__(self):
        self.groups = []
        self.behave = lambda runs: None

    def __call__(self, folder, base, runs, make_task, **options):
        self.behave(runs)
        self.groups.append([f"{run.label} {run.seed}" for run in runs])
        for run in runs:
            write_run(folder / run.folder, epochs=3, **numbers(run))
        return True


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(module, "run_together", trainer)
    return trainer


def train(folder, **options):
    stream = io.StringIO()
    tried, failures = run_groups(
        folder, base_of({"epochs": 3}), plan(RULES), None, most=9, stream=stream, **options
    )
    return tried, {f.run.title: f.reason for f in failures}, stream.getvalue()


def all_of(groups):
    return sorted(name for group in groups for name in group)


WHOLE = [
    *("kde_otsu 0", "kde_otsu 1", "mean_threshold(batches=2) 0", "mean_threshold(batches=2) 1"),
    *("none 0", "none 1", "random 0", "random 1"),
]


def test_what_does_not_fit_into_memory_is_trained_in_halves(tmp_path, trainer):
    def behave(runs):
        if len(runs) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    trainer.behave = behave
    tried, failures, said = train(tmp_path)
    assert (tried, failures) == (True, {})
    assert all_of(trainer.groups) == WHOLE
    flat = [name for group in trainer.groups for name in group]
    assert all(flat.index(f"kde_otsu {s}") < flat.index(f"random {s}") for s in (0, 1))
    assert "not enough memory for 6 runs side by side: trained in halves" in said
    assert train(tmp_path) == (True, {}, ""), "all is finished"


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED: no"), ValueError("two\nlines"), MemoryError("no")]
)
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, trainer, error):
    def behave(runs):
        if any(run.label == "kde_otsu" for run in runs):
            raise RuntimeError("RESOURCE_EXHAUSTED") if len(runs) > 1 else error

    trainer.behave = behave
    tried, failures, _ = train(tmp_path)
    assert tried
    assert {*failures} == {f"{rule}, seed {s}" for rule in ("kde_otsu", "random") for s in (0, 1)}
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    log = tmp_path / "runs/kde_otsu/seed_0/log.txt"
    assert failures["kde_otsu, seed 0"] == f"{said}; see {log}"
    assert failures["random, seed 1"] == "it takes the frozen share of runs/kde_otsu/seed_1"
    assert "Traceback" in log.read_text()
    others = [name for name in WHOLE if not name.startswith(("kde_otsu", "random"))]
    assert all_of(trainer.groups) == others


def test_a_configuration_that_is_wrong_is_wrong_for_all(tmp_path, trainer):
    def behave(runs):
        raise UserError("not for runs that train side by side")

    trainer.behave = behave
    with pytest.raises(UserError, match="not for runs"):
        train(tmp_path)


def test_it_stops_between_groups_when_time_is_up(tmp_path, trainer):
    tried, failures, _ = train(tmp_path, enough=lambda seconds: len(trainer.groups) > 0)
    assert (tried, failures) == (False, {})
    assert len(trainer.groups) == 1

import json
import math

import pytest

from pb_jax.errors import UserError
from pb_jax.study import cells_of, read, read_result, write_report
from pb_jax.study.results import full_training, random_control
from pb_jax.study.tables import markdown
from tests.synthetic_study import numbers, write_run, write_study


def results_of(folder):
    return [read_result(folder, run) for run in read(folder).runs]


def cells(folder):
    return {cell.title: cell for cell in cells_of(results_of(folder))}


def test_table_json_has_runs_and_cells(tmp_path):
    write_study(tmp_path, seeds=3)
    write_report(tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert len(content["runs"]) == 9
    run = content["runs"][1]
    assert (run["label"], run["seed"], run["state"]) == ("kde_otsu", 0, "finished")
    assert run["final_val_accuracy"] == pytest.approx(0.95 - 0.01 * 0.95)
    assert run["settings"] == {"freeze.rule": "kde_otsu", "seed": 0}
    assert content["base"]["epochs"] == 110
    full, kde, random = content["cells"]
    assert full["final_val_accuracy"] == pytest.approx({"mean": 0.96, "sd": 0.01, "n": 3})
    for name, value in (("minus_full_training", -0.0095), ("minus_random", 0.019)):
        by_seed = kde[name].pop("by_seed")
        assert by_seed == pytest.approx({"0": value, "1": value, "2": value})
        assert kde[name] == pytest.approx({"mean": value, "sd": 0, "n": 3})
    assert kde["random_control"] == "random"
    assert kde["frozen_fraction"]["mean"] == pytest.approx(0.761)
    assert random["minus_random"] == {"mean": None, "sd": None, "n": 0, "by_seed": {}}
    assert random["seeds"] == [0, 1, 2]


def test_table_md_is_a_table_of_points(tmp_path):
    study = write_study(tmp_path, seeds=3)
    lines = markdown(study, results_of(tmp_path)).splitlines()
    assert lines[0] == "# LeNet-5, MNIST, 110 epochs"
    row = next(line for line in lines if line.startswith("| kde_otsu"))
    assert row == (
        "| kde_otsu | 3 | 95.05 ± 1.00 | -0.95 ± 0.00 | +1.90 ± 0.00 | 95.15 ± 1.00 "
        "| 76.10 ± 0.10 | 0.095 ± 0.000 | 1.0 ± 0.0 |"
    )
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}


def test_one_seed_has_no_deviation(tmp_path):
    study = write_study(tmp_path, seeds=1)
    text = markdown(study, results_of(tmp_path))
    assert "| kde_otsu | 1 | 94.05 | -0.95 | +1.90 |" in text
    assert "±" not in text.split("| rule")[1]


def test_unfinished_runs_are_listed_and_do_not_count(tmp_path):
    study = write_study(tmp_path, seeds=3)
    (tmp_path / "runs/none/seed_1/summary.json").unlink()
    (tmp_path / "runs/random/seed_0/metrics.jsonl").unlink()
    (tmp_path / "runs/random/seed_1/summary.json").write_text("{")
    text = markdown(study, results_of(tmp_path))
    assert "| none | 2 of 3 |" in text
    assert "- none, seed 1: unfinished after 6 epochs" in text
    assert "- random, seed 0: missing" in text
    assert "- random, seed 1: damaged" in text
    kde, full = cells(tmp_path)["kde_otsu"], cells(tmp_path)["none"]
    assert kde.less(full).n == 2, "the seeds that both have"


def test_a_summary_of_fewer_epochs_is_none(tmp_path):
    write_study(tmp_path, seeds=1)
    path = tmp_path / "runs/none/seed_0/metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1].replace("60", "70") + "\n")
    assert results_of(tmp_path)[0].state == "unfinished"


def test_each_point_is_compared_with_its_own(tmp_path):
    write_study(tmp_path, seeds=2, grid=["freeze.coverage=0.8,0.9", "batch_size=50,100"])
    found = cells(tmp_path)
    everything = list(found.values())
    kde = found["kde_otsu, coverage 0.8, batch_size 50"]
    assert full_training(kde, everything) is found["none, batch_size 50"]
    control = random_control(kde, everything)
    assert control is found["random, coverage 0.8, batch_size 50"]
    assert random_control(control, everything) is None
    assert kde.less(control).mean == pytest.approx(0.016)


def test_the_control_is_the_one_of_the_same_share(tmp_path):
    write_study(
        tmp_path,
        "none,kde_otsu,mean_threshold,random@mean_threshold,quantile@mean_threshold",
        seeds=1,
    )
    found = cells(tmp_path)
    everything = list(found.values())
    control = found["random@mean_threshold"]
    assert random_control(found["mean_threshold"], everything) is control
    assert random_control(found["quantile@mean_threshold"], everything) is control
    assert random_control(found["kde_otsu"], everything) is None


def test_minutes_are_those_of_the_median_epoch(tmp_path):
    """A run that was paused, or had the machine not to itself, seems no longer for it."""
    study = write_study(tmp_path, "none", seeds=1)
    path = tmp_path / study.runs[0].folder / "metrics.jsonl"
    *others, last = path.read_text().splitlines()
    path.write_text("\n".join([*others, last.replace('"seconds": 10.0', '"seconds": 3600.0'), ""]))
    assert results_of(tmp_path)[0].minutes == pytest.approx(1.0)
    assert markdown(study, results_of(tmp_path)).splitlines()[-1].endswith("| 1.0 |")


def test_a_rule_that_froze_another_share_than_it_was_asked_has_no_control(tmp_path):
    study = write_study(tmp_path, "none,quantile:frozen=0.9,label=q,random:frozen=0.9", seeds=1)
    found = cells(tmp_path)
    assert random_control(found["q"], [*found.values()]) is found["random(frozen=0.9)"]
    q = next(run for run in study.runs if run.label == "q")
    write_run(tmp_path / q.folder, **{**numbers(q), "frozen": 1.0})
    found = cells(tmp_path)
    assert random_control(found["q"], [*found.values()]) is None


@pytest.mark.parametrize(
    ("how", "another"),
    [("granularity=channel", "granularity=element"), ("start_epoch=1", "start_epoch=3")],
)
def test_the_control_freezes_when_and_how_the_rule_does(tmp_path, how, another):
    rules = f"kde_otsu:{how},label=rule,random@rule:{another},label=another,random@rule:label=same"
    write_study(tmp_path, f"none,{rules}", seeds=1)
    found = cells(tmp_path)
    everything = list(found.values())
    assert random_control(found["rule"], everything) is found["same"]
    assert random_control(found["rule"], everything[:-1]) is None


def test_granularities_are_compared_with_their_own(tmp_path):
    write_study(tmp_path, seeds=1, grid=["freeze.granularity=element,channel,leaf"])
    found = cells(tmp_path)
    assert len(found) == 7, "full training is not repeated"
    for granularity in ("element", "channel", "leaf"):
        control = random_control(found[f"kde_otsu, granularity {granularity}"], [*found.values()])
        assert control is found[f"random, granularity {granularity}"]


def test_a_share_that_is_given_has_its_control_too(tmp_path):
    rules = "quantile:frozen=0.9,label=q,random:frozen=0.5,label=r5,random:frozen=0.9,scope=leaf"
    write_study(tmp_path, f"none,{rules},label=leaf,random:frozen=0.9,label=r9", seeds=1)
    found = cells(tmp_path)
    everything = list(found.values())
    assert random_control(found["q"], everything) is found["r9"]
    assert random_control(found["q"], everything[:-1]) is found["leaf"]
    assert random_control(found["r9"], everything) is None


def test_other_scores_get_their_column(tmp_path):
    study = write_study(tmp_path, "none,kde_otsu", seeds=1)
    for run in study.runs:
        path = tmp_path / run.folder / "summary.json"
        bleu = {"val_bleu4": 0.1, "test_bleu4": 0.2 - 0.05 * (run.rule == "kde_otsu")}
        path.write_text(json.dumps(json.loads(path.read_text()) | bleu))
    text = markdown(study, results_of(tmp_path))
    assert "| val_bleu4 |" in text
    assert "| BLEU-4, test split (%) |" in text
    assert "| kde_otsu | 1 | 15.00 | -5.00 |" in text, "captions are compared by their BLEU"


def test_a_larger_plan_keeps_the_runs_of_the_smaller(tmp_path):
    write_study(tmp_path, "none,kde_otsu", seeds=1)
    study = write_study(tmp_path, "none,mean_threshold", seeds=2)
    assert [run.folder for run in study.runs] == [
        "runs/none/seed_0",
        "runs/mean_threshold/seed_0",
        "runs/none/seed_1",
        "runs/mean_threshold/seed_1",
        "runs/kde_otsu/seed_0",
    ]
    assert read(tmp_path) == study


def test_another_configuration_needs_another_folder(tmp_path):
    write_study(tmp_path, "none,kde_otsu:label=it", seeds=1)
    with pytest.raises(UserError, match=r"batch_size: 100 there, 50 here"):
        write_study(tmp_path, **{"batch_size": 50})
    with pytest.raises(UserError, match=r"freeze\.bins: None there, 30 here"):
        write_study(tmp_path, "none,kde_otsu:bins=30,label=it", seeds=1)
    assert write_study(tmp_path, epochs=120), "more epochs are the same study"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("folder", "../../elsewhere", "no folder inside of the study's"),
        ("folder", "/elsewhere", "no folder inside of the study's"),
        ("share_of", "runs/../..", "no folder inside of the study's"),
        ("folder", "", "no folder inside of the study's"),
        ("folder", 3, "folder of a run is 3"),
        ("seed", "0", "seed of a run is '0'"),
        ("settings", [], "is damaged"),
        ("other", 1, "is damaged"),
    ],
)
def test_a_run_of_a_damaged_plan(tmp_path, key, value, message):
    """Nothing outside of the study's folder is read, nothing outside of an export's written."""
    write_study(tmp_path, seeds=1)
    plan = json.loads((tmp_path / "study.json").read_text())
    plan["runs"][0][key] = value
    (tmp_path / "study.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is .* the folder of a study"), ("{", "is damaged"), ('{"runs": []}', "is damaged")],
)
def test_a_missing_or_damaged_plan_is_said(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)


def test_without_a_finished_run_there_is_no_table(tmp_path):
    study = write_study(tmp_path, "none", seeds=1)
    (tmp_path / study.runs[0].folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"no run of .* is finished"):
        write_report(tmp_path)


def test_a_diverged_loss_is_no_number(tmp_path):
    study = write_study(tmp_path, "none", seeds=1)
    write_run(tmp_path / study.runs[0].folder, accuracy=0.1, frozen=0.0, threshold=None)
    assert cells(tmp_path)["none"].spread("threshold").n == 0
    assert math.isnan(cells(tmp_path)["none"].spread("threshold").mean)

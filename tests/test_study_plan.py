import re
from pathlib import Path

import pytest

from pb_jax.errors import UserError
from pb_jax.study import base_of, configuration, make_plan, parse_grid, parse_rules
from pb_jax.training import default_config
from pb_jax.training.config import RULES
from tests.synthetic_study import plan


def by_folder(runs):
    return {run.folder.removeprefix("runs/"): run for run in runs}


def test_every_rule_with_every_seed_first_seed_first():
    runs = plan("none,random,kde_otsu", seeds=2)
    assert [(run.seed, run.rule) for run in runs] == [
        (0, "none"),
        (0, "kde_otsu"),
        (0, "random"),  # behind the one whose share it takes
        (1, "none"),
        (1, "kde_otsu"),
        (1, "random"),
    ]
    assert len({run.folder for run in runs}) == 6


def test_seeds_begin_with_the_configurations():
    runs = make_plan({"seed": 5}, parse_rules("none"), 2)
    assert [run.seed for run in runs] == [5, 6]
    assert [configuration({}, run)["seed"] for run in runs] == [5, 6]


def test_a_grid_varies_what_it_can_change():
    runs = by_folder(plan("none,kde_otsu,random", seeds=1, grid=["freeze.coverage=0.9,0.99"]))
    assert set(runs) == {
        "none/seed_0",
        "kde_otsu/coverage=0.9/seed_0",
        "kde_otsu/coverage=0.99/seed_0",
        "random/coverage=0.9/seed_0",  # its share differs
        "random/coverage=0.99/seed_0",
    }
    random = runs["random/coverage=0.9/seed_0"]
    assert random.share_of == "runs/kde_otsu/coverage=0.9/seed_0"
    assert "freeze.coverage" not in random.settings
    resolved = configuration(base_of(default_config()), random, 0.75)["freeze"]
    assert (resolved["rule"], resolved["frozen"], resolved["coverage"]) == ("random", 0.75, None)
    kde = configuration({}, runs["kde_otsu/coverage=0.99/seed_0"])["freeze"]
    assert kde["coverage"] == 0.99


def test_a_grid_of_an_ordinary_key_varies_every_rule():
    runs = plan("none,kde_otsu", seeds=1, grid=["batch_size=50,100", "freeze.batches=1,4"])
    assert len(runs) == 2 + 4
    assert {run.point["batch_size"] for run in runs} == {50, 100}


def test_the_configurations_rule_parameters_go_to_the_rules_that_take_them():
    config = default_config()
    config.freeze.coverage = 0.8
    runs = {run.label: run for run in make_plan(config, parse_rules("none,kde_otsu,random"), 1)}
    base = base_of(config)
    assert configuration(base, runs["kde_otsu"])["freeze"]["coverage"] == 0.8
    assert configuration(base, runs["none"])["freeze"]["coverage"] is None
    config.freeze.frozen = 0.7
    runs = {run.label: run for run in make_plan(config, parse_rules("none,kde_otsu,random"), 1)}
    assert runs["random"].share_of is None
    assert configuration(base, runs["random"])["freeze"]["frozen"] == 0.7


@pytest.mark.parametrize(
    ("rules", "config", "grid", "message"),
    [
        ("none,random", {}, [], r"^random, seed 0: rule 'random' needs freeze\.frozen"),
        ("none", {"freeze": {"coverage": 0.9}}, [], r"^freeze\.coverage has no effect"),
        ("none", {}, ["freeze.coverage=0.9"], r"^--grid freeze\.coverage has no effect"),
        ("none,kde_otsu", {}, ["freeze.coverage=0.9,1.5"], r"coverage 1\.5, seed 0: .*at most 1"),
        ("none", {"epochs": 0}, [], "epochs=0 is not allowed"),
        ("kde_otsu:coverage=2", {}, [], "freeze.coverage=2 is not allowed"),
        ("none:batches=2", {}, [], None),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(rules, config, grid, message):
    if message is None:
        assert make_plan(config, parse_rules(rules), 1)
        return
    with pytest.raises(UserError, match=message):
        make_plan(config, parse_rules(rules), 1, parse_grid(grid))


def test_no_seeds_is_no_study():
    with pytest.raises(UserError, match="--seeds 0 is not allowed"):
        plan(seeds=0)


def documented_rules():
    text = (Path(__file__).parents[1] / "docs/studies.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (`.+`) \|$", text, re.MULTILINE)
    return [rule for row in rows for rule in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("rule", documented_rules())
def test_what_the_documentation_compares_can_be_planned(rule):
    runs = make_plan({}, parse_rules(f"none:label=full,mean_threshold:label=LABEL,{rule}"), 1)
    assert len(runs) == 3


def test_the_documentation_names_every_rule():
    assert {re.split("[@:]", rule)[0] for rule in documented_rules()} == set(RULES)

import pytest

from pb_jax.errors import UserError
from pb_jax.study import parse_grid, parse_rules, parse_value
from pb_jax.study.choices import applies


def one(text):
    (choice,) = parse_rules(text)
    return choice


def test_commas_separate_rules_and_parameters():
    choices = parse_rules("none, quantile:frozen=0.9,scope=leaf,random:frozen=0.5,mean_threshold")
    assert [c.rule for c in choices] == ["none", "quantile", "random", "mean_threshold"]
    assert choices[1].settings == {"freeze.frozen": 0.9, "freeze.scope": "leaf"}
    assert choices[1].label == "quantile(frozen=0.9,scope=leaf)"
    assert choices[2].settings == {"freeze.frozen": 0.5}


def test_a_label_of_ones_own_and_any_freeze_key():
    choice = one("kde_otsu:start_epoch=1,stop_epoch=none,batches=10,label=at_init")
    assert choice.label == "at_init"
    assert choice.settings == {
        "freeze.start_epoch": 1,
        "freeze.stop_epoch": None,
        "freeze.batches": 10,
    }


def test_a_share_comes_from_the_rule_that_finds_one():
    choices = {c.label: c for c in parse_rules("random,mean_threshold,kde_otsu,weight_magnitude")}
    assert choices["random"].share_of == "kde_otsu"
    assert choices["weight_magnitude"].share_of == "kde_otsu"
    assert choices["mean_threshold"].share_of is None
    assert parse_rules("none,random,mean_threshold")[1].share_of == "mean_threshold"
    assert one("random").share_of is None, "the configuration may have it"


def test_a_share_from_the_rule_that_is_named():
    choices = parse_rules("kde_otsu,kde_otsu:coverage=0.8,label=narrow,random@narrow:scope=leaf")
    assert choices[2].share_of == "narrow"
    assert choices[2].label == "random@narrow(scope=leaf)"
    assert choices[2].settings == {"freeze.scope": "leaf"}


def test_a_control_freezes_when_and_how_the_rule_does():
    first = "kde_otsu:start_epoch=1,mode=gradients,coverage=0.9,label=first"
    choices = parse_rules(f"none,{first},random@first,random@first:start_epoch=3,label=later")
    assert [dict(choice.settings) for choice in choices[2:]] == [
        {"freeze.start_epoch": 1, "freeze.mode": "gradients"},
        {"freeze.start_epoch": 3, "freeze.mode": "gradients"},
    ]


def test_a_control_has_the_granularity_of_what_it_controls():
    rules = "kde_otsu:granularity=channel,label=channels,kde_otsu,random@channels"
    choices = parse_rules(f"{rules},random@kde_otsu:label=r,random@channels:granularity=element")
    assert [c.settings for c in choices] == [
        {"freeze.granularity": "channel"},
        {},
        {"freeze.granularity": "channel"},
        {},
        {"freeze.granularity": "element"},
    ]
    implied = parse_rules("none,kde_otsu:granularity=leaf,random")[2]
    assert implied.settings == {"freeze.granularity": "leaf"}
    assert implied.share_of == "kde_otsu(granularity=leaf)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none,kde_otzu", "unknown rule 'kde_otzu'; did you mean 'kde_otsu'"),
        ("kde_otsu:covrage=0.9", r"unknown config key 'freeze\.covrage'; did you mean"),
        ("kde_otsu:coverage", "'coverage' in --rules is no KEY=VALUE"),
        ("none,none", "names 'none' twice; tell them apart, as in none:label=NAME"),
        ("random@kde_otsu", "unknown rule after @ 'kde_otsu'"),
        ("kde_otsu,random@kde_otsu:frozen=0.5", "two shares"),
        ("kde_otsu,mean_threshold@kde_otsu", "finds its share itself"),
        ("none,random@none", "cannot take the share of 'none'"),
        ("quantile:frozen=0.5,random@quantile(frozen=0.5)", "cannot take the share of"),
        ("kde_otsu:rule=none", "names its rule twice"),
    ],
)
def test_what_is_wrong_with_rules_is_said(text, message):
    with pytest.raises(UserError, match=message):
        parse_rules(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["freeze.coverag=0.9"], "unknown config key 'freeze.coverag'; did you mean"),
        (["freeze.coverage"], r"has no values; write freeze\.coverage=VALUE,VALUE"),
        (["freeze.coverage="], "has no values"),
        (["freeze.coverage=0.9,0.9"], "a value twice"),
        (["epochs=1", "epochs=2"], "is there twice"),
        (["seed=1,2"], "vary it with --seeds"),
        (["freeze.rule=none"], "vary it with --rules"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(texts, message):
    with pytest.raises(UserError, match=message):
        parse_grid(texts)


def test_values_keep_their_type():
    assert parse_grid(["freeze.bandwidth=scott,0.5", "freeze.refresh_epochs=none,35"]) == {
        "freeze.bandwidth": ("scott", 0.5),
        "freeze.refresh_epochs": (None, 35),
    }
    assert [type(parse_value(x)) for x in ("3", "3.0", "x", "True")] == [int, float, str, bool]


def test_a_key_applies_where_it_changes_something():
    none, kde, random, fixed = parse_rules("none,kde_otsu,random:frozen=0.5,kde_otsu:bins=9")
    assert applies("batch_size", none)
    assert not applies("freeze.start_epoch", none)
    assert applies("freeze.start_epoch", random)
    assert not applies("freeze.coverage", random)
    assert applies("freeze.bins", kde)
    assert not applies("freeze.bins", fixed), "it has its own"
    assert applies("freeze.compact", random)
    assert not applies("freeze.compact", none)

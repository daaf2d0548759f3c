import math

import pytest

from pb_jax.errors import UserError
from pb_jax.training import config as schema
from pb_jax.training import default_config, describe_keys, resolve


def with_value(name, value):
    return schema.nest({name: value})


def test_defaults_are_allowed_and_are_the_papers():
    resolved = schema.flatten(resolve(default_config()))
    assert resolved.keys() == schema.KEYS.keys()
    assert (resolved["epochs"], resolved["batch_size"]) == (110, 100)
    assert resolved["optimizer.name"] == "amsgrad_torch"
    assert resolved["freeze.start_epoch"] == 3
    captioner = schema.flatten(resolve(default_config("captioner")))
    assert captioner.keys() == {**schema.KEYS, **schema.CAPTIONER_KEYS}.keys()


def test_resolved_configurations_hold_every_number():
    resolved = schema.flatten(resolve({}))
    assert (resolved["freeze.coverage"], resolved["freeze.bins"]) == (0.95, 300)
    assert (resolved["optimizer.b2"], resolved["optimizer.eps"]) == (0.999, 1e-8)
    assert resolved["freeze.frozen"] is None
    assert resolve(resolve({})) == resolve({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("batch_size", None),
        ("epochs", "3"),
        ("seed", -1),
        ("seed", 2**32),  # it would be that of 0
        ("epochs", 2**31),
        ("freeze.bins", 65_537),
        ("optimizer.boundaries", (10**10,)),
        *(("processes.coordinator", one) for one in ("nonsense", "host:", ":80", "host:0")),
        *(("processes.coordinator", one) for one in ("host:65536", "host:+1", "::1:80", "[:80")),
        ("model.name", ""),
        ("model.dtype", "float16"),
        ("optimizer.name", "sdg"),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", math.nan),
        pytest.param("optimizer.learning_rate", 10**400, id="learning_rate, no float"),
        ("optimizer.boundaries", (80, 40)),
        ("optimizer.boundaries", (1.5,)),
        ("optimizer.boundaries", 40),
        ("optimizer.b1", 1.0),
        ("freeze.mode", "foo"),
        ("freeze.rule", "kde"),
        ("freeze.start_epoch", 0),
        ("freeze.refresh_epochs", 0),
        ("freeze.granularity", "row"),
        ("freeze.compact", "auto"),
        ("freeze.compact", 1),
        ("freeze.coverage", 1.5),
        ("freeze.bandwidth", "botev"),
        ("freeze.bandwidth", -1.0),
        pytest.param("freeze.bandwidth", 10**400, id="bandwidth, no float"),
        ("freeze.bins", 1),
        ("dataset.limit_train", 0),
        ("optimizer.patience", 0),
        ("checkpoint.keep", 0),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(UserError) as caught:
        resolve(with_value(name, value))
    assert f"{name}={value!r:.200}" in str(caught.value)
    assert "is not allowed: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("epoch", "epochs"),
        ("freeze.star_epoch", "freeze.start_epoch"),
        ("optimizer.learningrate", "optimizer.learning_rate"),
        ("freeze.learning_rate", "optimizer.learning_rate"),
    ],
)
def test_mistyped_keys_get_a_suggestion(name, suggestion):
    with pytest.raises(
        UserError, match=f"unknown config key '{name}'; did you mean '{suggestion}'"
    ):
        resolve(with_value(name, 1))


def test_a_key_like_no_other_lists_all():
    with pytest.raises(UserError, match="unknown config key 'xyzzy'; known: seed, epochs"):
        resolve({"xyzzy": 1})


def test_stop_must_come_after_start():
    resolve({"freeze": {"start_epoch": 3, "stop_epoch": 4}})
    with pytest.raises(UserError, match="stop_epoch=3 must come after"):
        resolve({"freeze": {"start_epoch": 3, "stop_epoch": 3}})


def test_leaves_are_not_compared_with_themselves():
    resolve({"freeze": {"granularity": "leaf"}})
    resolve({"freeze": {"granularity": "channel", "scope": "leaf"}})
    with pytest.raises(UserError, match="leaves nothing to choose within a leaf"):
        resolve({"freeze": {"granularity": "leaf", "scope": "leaf"}})


def test_compact_state_is_for_frozen_updates():
    assert resolve({})["freeze"]["compact"] is None
    resolve({"freeze": {"mode": "updates", "compact": True}})
    resolve({"freeze": {"mode": "gradients", "compact": False}})
    with pytest.raises(UserError, match=r"freeze\.compact=True does not go with freeze\.mode="):
        resolve({"freeze": {"mode": "gradients", "compact": True}})


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [("random", "coverage", 0.9), ("kde_otsu", "frozen", 0.5), ("none", "scope", "leaf")],
)
def test_parameters_of_other_rules_are_errors(rule, key, value):
    with pytest.raises(UserError, match=f"freeze.{key}={value!r} has no effect: rule '{rule}'"):
        resolve({"freeze": {"rule": rule, "frozen": 0.5 if rule == "random" else None, key: value}})


def test_parameters_of_other_optimizers_are_errors():
    with pytest.raises(UserError, match=r"optimizer.momentum=0.9 has no effect: 'adam'"):
        resolve({"optimizer": {"name": "adam", "momentum": 0.9}})


@pytest.mark.parametrize("rule", schema.RULES)
def test_every_rule_resolves_once_it_has_what_it_needs(rule):
    needed = {"fixed_threshold": "threshold", "quantile": "frozen"}
    needed |= {"random": "frozen", "weight_magnitude": "frozen"}
    if rule in needed:
        with pytest.raises(UserError, match=f"rule '{rule}' needs freeze.{needed[rule]}"):
            resolve({"freeze": {"rule": rule}})
    given = {needed[rule]: 0.5} if rule in needed else {}
    assert resolve({"freeze": {"rule": rule, **given}})["freeze"]["rule"] == rule


def test_keys_of_rules_are_keys_of_the_schema():
    for rule in schema.RULES:
        assert {f"freeze.{key}" for key in schema.rule_parameters(rule)} <= schema.KEYS.keys()


def test_every_key_is_described():
    text = describe_keys()
    assert all(f"  {name} " in text for name in schema.KEYS)
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("captioner.hidden", 0),
        ("captioner.dropout", 1.0),
        ("captioner.regularisation", -1.0),
        ("captioner.min_count", 0),
        ("generation.beam", 0),
        ("generation.max_length", 1.5),
        ("encoder.name", ""),
    ],
)
def test_values_that_are_not_allowed_in_a_captioner(name, value):
    flat = {"model.name": "captioner", name: value}
    with pytest.raises(UserError, match=f"{name}=.* is not allowed"):
        resolve(schema.nest(flat))


def test_a_captioners_keys_are_of_captioners_only():
    with pytest.raises(UserError, match=r"generation\.beam has no effect"):
        resolve({"generation": {"beam": 2}})


def test_two_schedules_contradict_each_other():
    with pytest.raises(UserError, match="give one"):
        resolve({"optimizer": {"boundaries": (3,), "patience": 2}})
    with pytest.raises(UserError, match=r"without optimizer\.patience"):
        resolve({"optimizer": {"stop_patience": 2}})


@pytest.mark.parametrize("address", ["localhost:1", "a-1.example:65535", "10.0.0.1:80", "[::1]:80"])
def test_addresses(address):
    given = {"distributed": True, "processes": {"coordinator": address}}
    assert resolve(given)["processes"]["coordinator"] == address


@pytest.mark.parametrize(("name", "value"), [("seed", 2**32 - 1), ("freeze.bins", 65_536)])
def test_the_largest_values(name, value):
    assert schema.flatten(resolve(with_value(name, value)))[name] == value

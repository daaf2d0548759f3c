import json

import pytest

from pb_jax.errors import UserError
from pb_jax.training import check_start, resolve
from pb_jax.training.workdir import settle
from tests.tiny_training import (
    STEPS,
    assert_same_run,
    lines,
    saved_state,
    tiny_fit,
    tiny_freezing,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Two epochs of full training."""
    workdir = tmp_path_factory.mktemp("start")
    tiny_fit(workdir, 2, freezing=None)
    return workdir


def test_full_training_goes_on_as_if_it_had_not_been_parted(tmp_path, start):
    tiny_fit(tmp_path / "whole", 4, freezing=None)
    tiny_fit(tmp_path / "parted", 4, freezing=None, start_from=start)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 4)
    assert "going on from epoch 2 of" in (tmp_path / "parted" / "printed.txt").read_text()


@pytest.mark.parametrize("mode", ["updates", "gradients"])
def test_a_rule_goes_on_from_itself_as_if_it_had_not_been_parted(tmp_path, mode):
    freezing = tiny_freezing(mode=mode)
    tiny_fit(tmp_path / "whole", 4, freezing=freezing, keep=4)
    tiny_fit(tmp_path / "parted", 4, freezing=freezing, start_from=tmp_path / "whole")
    assert "going on from epoch 2" in (tmp_path / "parted" / "printed.txt").read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 4)


def test_between_full_training_and_a_rule(tmp_path, start):
    tiny_fit(tmp_path / "rule", 3, freezing=tiny_freezing(), start_from=start, keep=3)
    assert lines(tmp_path / "rule")[:2] == lines(start)
    assert 0.2 < lines(tmp_path / "rule")[2]["frozen_fraction"] < 1
    assert int(saved_state(tmp_path / "rule", 3)["opt_state.count"]) == 3 * STEPS
    tiny_fit(tmp_path / "full", 3, freezing=None, start_from=tmp_path / "rule")
    tiny_fit(tmp_path / "whole", 3, freezing=None)
    assert_same_run(tmp_path / "whole", tmp_path / "full", 3)


def test_a_run_with_epochs_of_its_own_goes_on_with_them(tmp_path, start):
    tiny_fit(tmp_path / "run", 1, freezing=tiny_freezing())
    before = lines(tmp_path / "run")
    tiny_fit(tmp_path / "run", 3, freezing=tiny_freezing(), start_from=tmp_path / "nowhere")
    assert lines(tmp_path / "run")[:1] == before


def test_no_epoch_before_the_mask(tmp_path, start):
    with pytest.raises(UserError, match="no checkpoint before epoch 1 and before a mask"):
        tiny_fit(tmp_path / "run", 3, freezing=tiny_freezing(start_epoch=1), start_from=start)
    tiny_fit(tmp_path / "masked", 4, freezing=tiny_freezing(), keep=1)
    with pytest.raises(UserError, match="no checkpoint before epoch 5"):
        tiny_fit(tmp_path / "other", 4, freezing=None, start_from=tmp_path / "masked")


def test_only_what_freezes_may_differ(tmp_path):
    settle(resolve({"seed": 1, "epochs": 2, "freeze": {"rule": "none"}}), tmp_path)
    check_start(resolve({"seed": 1, "epochs": 9, "freeze": {"coverage": 0.9}}), tmp_path)
    with pytest.raises(UserError, match=r"another configuration:\n  seed: 1 there, 2 here$"):
        check_start(resolve({"seed": 2, "epochs": 9}), tmp_path)
    with pytest.raises(UserError, match="cannot start from"):
        check_start(resolve({}), tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1})[:-2])
    with pytest.raises(UserError, match="damaged"):
        check_start(resolve({}), tmp_path)

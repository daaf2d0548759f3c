import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pb_jax
from pb_jax.training import metrics, optimizers
from pb_jax.training.classification import Classification
from pb_jax.training.ensemble import Ensemble, Member
from pb_jax.training.side_by_side import fit_together
from pb_jax.training.step import Steps, Totals
from tests.tiny_training import (
    BATCH,
    STEPS,
    Tiny,
    lines,
    tiny_data,
    tiny_fit,
    tiny_freezing,
    tiny_schedule,
)

SEEDS = (3, 4)
RULES = {
    "kde_otsu": pb_jax.kde_otsu(learning_rate=1e-2),
    "random": pb_jax.random(0.6),
    "by leaf": pb_jax.quantile(0.5, scope="leaf"),
    "none": None,
}


def tiny_task(seed=0):
    return Classification(Tiny(nnx.Rngs(seed)), tiny_data(), BATCH)


def sgd():
    """Adam would blow up the rounding of gradients that are zero: the bias before the norm's."""
    return optimizers.create("sgd", tiny_schedule(), momentum=0.9)


def members(folder, rule, seeds=SEEDS, **changes):
    made = []
    for seed in seeds:
        task = tiny_task()
        workdir = folder / f"seed_{seed}"
        workdir.mkdir(parents=True, exist_ok=True)
        freezing = None if rule is None else tiny_freezing(rule=rule, seed=seed, **changes)
        made.append(Member(workdir, seed, task.params, task.model_state, freezing))
    return made


def together(folder, made, epochs=4, **options):
    options = {"learning_rate": tiny_schedule(), "stream": io.StringIO()} | options
    return fit_together(tiny_task(), made, sgd(), folder, epochs=epochs, **options)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            # The gradient of a bias before a norm is zero, or what rounding makes of it.
            room = 0.01 if key == "zero_gradient_fraction" else 0
            wanted = value if value is None else pytest.approx(value, rel=2e-4, abs=room)
            assert one[key] == wanted, key


@pytest.mark.parametrize(
    ("name", "side_by_side", "changes"),
    [
        pytest.param("kde_otsu", "vmap", {}, marks=pytest.mark.slow),
        pytest.param("kde_otsu", "map", {}, marks=pytest.mark.slow),
        ("none", "faster", {}),
        pytest.param(
            "random", "vmap", {"refresh_epochs": 1, "stop_epoch": 4}, marks=pytest.mark.slow
        ),
        pytest.param(
            "by leaf",
            "vmap",
            {"batches": 3, "batch_size": 20, "mode": "gradients"},
            marks=pytest.mark.slow,
        ),
        ("none", "vmap", {}),
    ],
)
def test_members_end_as_single_runs(tmp_path, name, side_by_side, changes):
    made = members(tmp_path, RULES[name], **changes)
    summaries = together(tmp_path, made, side_by_side=side_by_side)
    for seed, summary in zip(SEEDS, summaries, strict=True):
        single = tmp_path / f"single_{seed}"
        freezing = None
        if RULES[name] is not None:
            freezing = tiny_freezing(rule=RULES[name], seed=seed, **changes)
        wanted = tiny_fit(single, 4, seed=seed, freezing=freezing, optimizer=sgd())
        assert_close(lines(tmp_path / f"seed_{seed}"), lines(single))
        assert summary["final_val_accuracy"] == wanted["final_val_accuracy"]
        assert summary["frozen_fraction"] == wanted["frozen_fraction"]
        assert json.loads((tmp_path / f"seed_{seed}/summary.json").read_text()) == summary
        masks = sorted(path.name for path in single.glob("mask_step_*.npz"))
        assert sorted(p.name for p in (tmp_path / f"seed_{seed}").glob("mask*")) == masks
        for mask in masks:
            with np.load(single / mask) as one, np.load(tmp_path / f"seed_{seed}" / mask) as other:
                assert set(one) == set(other)
                np.testing.assert_array_equal(one["leaf_frozen"], other["leaf_frozen"])
                np.testing.assert_array_equal(one["step"], other["step"])
    assert len({tuple(line["train_loss"] for line in lines(m.workdir)) for m in made}) == 2


def test_a_member_takes_the_share_of_another(tmp_path):
    kde, full, control = members(tmp_path, RULES["kde_otsu"], seeds=(3, 5, 7))
    full = Member(full.workdir, 3, full.params, full.model_state)
    control = Member(
        control.workdir,
        3,
        control.params,
        control.model_state,
        tiny_freezing(rule=pb_jax.random(0.5), seed=3),
        share_of=0,
        rule=pb_jax.random,
    )
    one, none, other = together(tmp_path, [kde, full, control])
    assert 0.2 < one["frozen_fraction"] < 1
    assert other["frozen_fraction"] == one["frozen_fraction"]
    assert none["frozen_fraction"] == 0
    losses = [[line["train_loss"] for line in lines(m.workdir)] for m in (kde, full, control)]
    assert losses[0][:2] == losses[1][:2] == losses[2][:2], "the same run until the mask"
    assert len({tuple(loss) for loss in losses}) == 3


def test_stopped_and_resumed_it_ends_as_if_nothing_had_been(tmp_path):
    rule = RULES["kde_otsu"]
    whole = together(tmp_path / "whole", members(tmp_path / "whole", rule), every_epochs=100)
    folder = tmp_path / "parts"
    spent = []
    made = members(folder, rule)
    stop = {"enough": lambda seconds: spent.append(seconds) or len(spent) == 3}
    assert together(folder, made, every_epochs=2, **stop) is None
    assert len(spent) == 3
    assert [len(lines(member.workdir)) for member in made] == [3, 3]
    stream = io.StringIO()
    parts = together(folder, members(folder, rule), stream=stream)
    assert "resuming after epoch 3" in stream.getvalue()
    for one, other in zip(whole, parts, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for seed in SEEDS:
        assert lines(folder / f"seed_{seed}") == lines(tmp_path / f"whole/seed_{seed}")


def test_lines_after_the_checkpoint_are_written_again(tmp_path):
    rule = RULES["random"]
    made = members(tmp_path, rule)
    together(tmp_path, made, epochs=2, every_epochs=1)
    path = made[0].workdir / "metrics.jsonl"
    metrics.append(path, metrics.read(path)[-1] | {"epoch": 3})  # as if killed before the save
    together(tmp_path, members(tmp_path, rule), epochs=3)
    assert [line["epoch"] for line in lines(made[0].workdir)] == [1, 2, 3]


def primitives(jaxpr):
    """How often each primitive is in a program, those inside of loops included."""
    counts = {}
    for equation in jaxpr.eqns:
        # A choice by platform is a branch until the program is lowered.
        chosen = equation.params.get("branches_platforms")
        name = "platform" if chosen else equation.primitive.name
        counts[name] = counts.get(name, 0) + 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    for name, number in primitives(inner).items():
                        counts[name] = counts.get(name, 0) + number
    return counts


def test_the_step_does_not_hold_the_masks_estimate(tmp_path):
    """Under vmap a branch that makes the mask would be computed at every step."""

    def program(rule):
        ensemble = Ensemble(tiny_task(), members(tmp_path, rule), sgd())
        state = ensemble.initial()
        totals = jax.tree.map(lambda x: jnp.stack([x, x]), Totals.empty())
        rows = jnp.zeros((2, STEPS, BATCH), jnp.int32)
        data = tiny_task().train_data()
        return primitives(jax.make_jaxpr(ensemble.train)(state, totals, data, rows).jaxpr)

    estimating, nothing = program(RULES["kde_otsu"]), program(pb_jax.none())
    assert estimating == nothing
    assert "fft" not in estimating
    assert "cond" not in estimating
    # What it would be: the transformation by itself, with a counter for each run.
    steps = Steps(tiny_task(), sgd(), tiny_freezing(rule=RULES["kde_otsu"]))
    task = tiny_task()
    state = steps.initial(task.params, task.model_state)
    alone = tiny_freezing(rule=RULES["kde_otsu"]).around(sgd())
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), (task.params, state.opt_state))
    update = jax.vmap(lambda params, opt_state: alone.update(params, opt_state, params))
    inside = primitives(jax.make_jaxpr(update)(*stacked).jaxpr)
    assert inside["fft"] > 0
    assert "cond" not in inside, "both branches, at every step"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side_by_side": "pmap"}, "side_by_side must be one of"),
        ({"batches": 2}, "the same freezing.batches"),
        ({"share_of": 1}, "share_of must be an earlier member's place, got 1"),
    ],
)
def test_what_cannot_go_together_is_said(tmp_path, change, message):
    one, other = members(tmp_path, RULES["random"])
    options = {}
    if "side_by_side" in change:
        options = change
    elif "batches" in change:
        (other,) = members(tmp_path, RULES["random"], seeds=(4,), **change)
    else:
        other = Member(other.workdir, 4, other.params, other.model_state, other.freezing, **change)
    with pytest.raises(ValueError, match=message):
        together(tmp_path, [one, other], **options)

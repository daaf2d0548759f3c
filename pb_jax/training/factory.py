"""The parts of an experiment that a resolved configuration names: optimizer, rule, schedule."""

import inspect
from collections.abc import Mapping
from typing import Any

import optax

import pb_jax
from pb_jax.errors import UserError
from pb_jax.training import optimizers
from pb_jax.training.config import rule_parameters
from pb_jax.training.freezing import Freezing
from pb_jax.training.plateau import Plateau


def make_optimizer(
    config: Mapping[str, Any], steps_per_epoch: int
) -> tuple[optax.Schedule | Plateau, optax.GradientTransformation]:
    """The learning rate's schedule, and the optimizer that follows it.

    Args:
        config: from `resolve`.
        steps_per_epoch: updates in an epoch.

    Returns:
        A function of steps; or, with `optimizer.patience`, a `Plateau`.
    """
    chosen = config["optimizer"]
    name, rate = chosen["name"], chosen["learning_rate"]
    taken = {key: chosen[key] for key in optimizers.parameters(name)}
    if chosen["patience"] is not None:
        plateau = Plateau(rate, chosen["decay"], chosen["patience"], chosen["stop_patience"])
        return plateau, optimizers.adjustable(name, rate, **taken)
    schedule = optimizers.piecewise(rate, chosen["boundaries"], chosen["decay"], steps_per_epoch)
    return schedule, optimizers.create(name, schedule, **taken)


def make_rule(config: Mapping[str, Any]) -> pb_jax.Rule:
    """The rule that `freeze.rule` names, which judges what `freeze.granularity` says.

    The unit in which it measures gradients is `optimizer.learning_rate`, that of the first epoch.

    Args:
        config: from `resolve`.
    """
    chosen = config["freeze"]
    make = getattr(pb_jax, chosen["rule"])
    arguments = {key: chosen[key] for key in rule_parameters(chosen["rule"])}
    if "threshold" in arguments:
        arguments["t"] = arguments.pop("threshold")
    if "learning_rate" in inspect.signature(make).parameters:
        arguments["learning_rate"] = config["optimizer"]["learning_rate"]
    return pb_jax.by_group(make(**arguments), chosen["granularity"])


def make_freezing(config: Mapping[str, Any], steps_per_epoch: int) -> Freezing | None:
    """What is frozen and when; None for full training, `freeze.rule="none"`.

    Args:
        config: from `resolve`.
        steps_per_epoch: updates in an epoch.
    """
    chosen = config["freeze"]
    if chosen["rule"] == "none":
        return None
    examples = steps_per_epoch * config["batch_size"]
    if chosen["batch_size"] is not None and chosen["batch_size"] > examples:
        raise UserError(
            f"freeze.batch_size={chosen['batch_size']} is more than the {examples} examples of an "
            "epoch; take a smaller one"
        )
    return Freezing(
        make_rule(config),
        steps_per_epoch,
        start_epoch=chosen["start_epoch"],
        refresh_epochs=chosen["refresh_epochs"],
        stop_epoch=chosen["stop_epoch"],
        mode=chosen["mode"],
        batches=chosen["batches"],
        batch_size=chosen["batch_size"],
        alpha=config["optimizer"]["learning_rate"],
        seed=config["seed"],
        compact=chosen["compact"],
    )

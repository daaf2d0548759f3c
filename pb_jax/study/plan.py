"""The runs of a study: every rule at every point of a grid with every seed."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pb_jax.errors import UserError
from pb_jax.study.choices import OF_RULES, Choice, applies
from pb_jax.training.config import flatten, nest, resolve

SHARE = "freeze.frozen"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        folder: inside of the study's folder; the run's workdir.
        label: of its rule in the study.
        rule: its name.
        point: the grid's settings that matter to it.
        seed: of the run.
        settings: config keys that differ from the study's base, all of the above included. The
            share of weights is not among them where `share_of` says whose it is.
        share_of: folder of the run whose frozen share it takes; None: it takes none.
    """

    folder: str
    label: str
    rule: str
    point: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    share_of: str | None = None

    @property
    def cell(self) -> str:
        """Folder of all its seeds."""
        return self.folder.rpartition("/")[0]

    @property
    def title(self) -> str:
        """The run as messages call it."""
        return f"{cell_title(self.label, self.point)}, seed {self.seed}"


def cell_title(label: str, point: Mapping[str, Any]) -> str:
    """A rule at a point of the grid, as tables and figures call it.

    Example:
        >>> cell_title("kde_otsu", {"freeze.coverage": 0.9})
        'kde_otsu, coverage 0.9'
    """
    return ", ".join(
        [label, *(f"{key.rpartition('.')[2]} {value}" for key, value in point.items())]
    )


def make_plan(
    config: Mapping[str, Any],
    choices: Sequence[Choice],
    seeds: int,
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Run, ...]:
    """The runs, in the order in which to make them: all rules of the first seed come first.

    A key of the grid that cannot change anything in the runs of a rule is left out there, so that
    full training is not repeated for each value of `freeze.coverage`.

    Args:
        config: with the keys of `pb_jax.training.KEYS`, what all runs share; its seed is the first.
        choices: from `parse_rules`.
        seeds: how many, at least 1.
        grid: values of config keys, from `parse_grid`.

    Raises:
        UserError: a configuration that cannot run, before any does.

    Example:
        >>> from pb_jax.study import parse_rules
        >>> for run in make_plan({}, parse_rules("none,kde_otsu,random"), seeds=1):
        ...     print(run.folder, run.share_of)
        runs/none/seed_0 None
        runs/kde_otsu/seed_0 None
        runs/random/seed_0 runs/kde_otsu/seed_0
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds} is not allowed: a whole number, at least 1")
    base = base_of(config)
    of_rules = {
        key: value
        for key, value in flatten(config).items()
        if key in OF_RULES and value is not None
    }
    grid = grid or {}
    for where, keys in (("", of_rules), ("--grid ", grid)):
        for key in keys:
            if not any(applies(key, choice) for choice in choices):
                named = ", ".join(choice.label for choice in choices)
                raise UserError(f"{where}{key} has no effect: none of the rules {named} takes it")
    by_label = {choice.label: choice for choice in choices}
    first = base.get("seed", 0)
    runs: dict[str, Run] = {}
    for seed in range(first, first + seeds):
        for choice in choices:
            for values in itertools.product(*grid.values()):
                point = dict(zip(grid, values, strict=True))
                run = _run(choice, by_label, point, seed, of_rules)
                _check(base, run)
                runs.setdefault(run.folder, run)
    order = sorted(runs.values(), key=lambda run: (run.seed, run.share_of is not None))
    return tuple(order)


def starts_of(base: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Run]:
    """Runs of full training that several others can go on from, up to their first masks.

    Args:
        base: from `base_of`.
        runs: of the plan.

    Returns:
        By the folder of a run, the one that trains its first epochs. A run that shares them with
        no other is not in it.

    Example:
        >>> from pb_jax.study import parse_rules
        >>> runs = make_plan({}, parse_rules("none,kde_otsu,random"), seeds=1)
        >>> start = starts_of(base_of({}), runs)["runs/random/seed_0"]
        >>> start.folder, start.settings["epochs"]
        ('starts/epochs=2/seed_0', 2)
    """
    groups: dict[str, list[tuple[Run, dict[str, Any], int]]] = {}
    for run in runs:
        config = configuration(base, run)
        full = min(config["freeze"]["start_epoch"] - 1, config["epochs"])
        own = {k: v for k, v in run.settings.items() if not k.startswith("freeze.")}
        groups.setdefault(repr(sorted(own.items())), []).append(
            (run, own, 0 if run.rule == "none" else full)
        )
    starts = {}
    for members in groups.values():
        # Full training can go on from any; it takes the longest.
        longest = max(full for _, _, full in members)
        wanted = [(run, own, full or longest) for run, own, full in members if run.rule == "none"]
        wanted += [(run, own, full) for run, own, full in members if run.rule != "none"]
        for run, own, full in wanted:
            if full > 0 and sum(other == full for _, _, other in wanted) > 1:
                point = {k: v for k, v in run.point.items() if not k.startswith("freeze.")}
                starts[run.folder] = _start(run.seed, point, own, full)
    return starts


def _start(seed: int, point: Mapping[str, Any], own: Mapping[str, Any], epochs: int) -> Run:
    named = {**point, "epochs": epochs}
    parts = [f"{key.rpartition('.')[2]}={value}" for key, value in named.items()]
    folder = "/".join(["starts", *map(_safe, parts), f"seed_{seed}"])
    settings = {**own, "freeze.rule": "none", "epochs": epochs}
    return Run(folder, "first epochs", "none", named, seed, settings)


def base_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs share: the flat configuration without what belongs to single rules."""
    flat = flatten(config)
    return {
        key: value for key, value in flat.items() if key not in OF_RULES and key != "freeze.rule"
    }


def configuration(base: Mapping[str, Any], run: Run, share: float | None = None) -> dict[str, Any]:
    """The resolved configuration of a run.

    Args:
        base: from `base_of`.
        run: of the plan.
        share: what the run that `share_of` names has frozen; None: not known yet, 0.5 stands in.
    """
    shared = {} if run.share_of is None else {SHARE: 0.5 if share is None else share}
    return resolve(nest({**base, **run.settings, **shared}))


def _run(
    choice: Choice,
    by_label: Mapping[str, Choice],
    point: Mapping[str, Any],
    seed: int,
    of_rules: Mapping[str, Any],
) -> Run:
    source = None if choice.share_of is None else by_label[choice.share_of]
    if SHARE in of_rules and SHARE not in choice.settings and source is not None:
        source = None  # the configuration gives one to all
    share_of = None
    if source is not None:
        share_of = _run(source, by_label, point, seed, of_rules).folder
    mine = {key: value for key, value in point.items() if applies(key, choice)}
    named = {
        key: value
        for key, value in point.items()
        if key in mine or (source is not None and applies(key, source))
    }
    settings = {key: value for key, value in of_rules.items() if applies(key, choice)}
    settings |= {**mine, **choice.settings, "freeze.rule": choice.rule, "seed": seed}
    parts = [choice.label, *(f"{key.rpartition('.')[2]}={value}" for key, value in named.items())]
    folder = "/".join(["runs", *map(_safe, parts), f"seed_{seed}"])
    return Run(folder, choice.label, choice.rule, named, seed, settings, share_of)


def _safe(text: str) -> str:
    """The text as the name of a folder.

    Example:
        >>> _safe("quantile(frozen=0.9,largest=True)")
        'quantile_frozen=0.9_largest=True'
    """
    return re.sub(r"[^\w.=@+-]+", "_", text).strip("_")


def _check(base: Mapping[str, Any], run: Run) -> None:
    try:
        configuration(base, run)
    except UserError as error:
        raise UserError(f"{run.title}: {error}") from error

"""Runs of a study that train side by side in this process, for accelerators.

Runs go together where they differ in nothing that the compiled step depends on: in their seed, and
in which weights they freeze and when. All rules of a table with all their seeds are one program.
"""

import dataclasses
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pb_jax
from pb_jax import training
from pb_jax.errors import UserError
from pb_jax.files import write_json
from pb_jax.study.execution import LOG, Failure
from pb_jax.study.plan import SHARE, Run, configuration
from pb_jax.study.results import read_result
from pb_jax.training.config import flatten, nest
from pb_jax.training.ensemble import Member
from pb_jax.training.plateau import Plateau
from pb_jax.training.side_by_side import fit_together

# What members of one program may differ in: see `pb_jax.training.ensemble`.
_OWN = frozenset(
    {"seed", "freeze.rule", "freeze.start_epoch", "freeze.refresh_epochs", "freeze.stop_epoch"}
    | {f"freeze.{key}" for key in ("coverage", "bandwidth", "bins", "scale", "threshold")}
    | {"freeze.frozen", "freeze.largest", "freeze.scope"}
)
_BY_LEAF = "leaf"
CHECKPOINTS = "together"
"""Of runs that train side by side: a folder in that of the study."""


def groups_of(base: Mapping[str, Any], runs: Sequence[Run], most: int) -> list[list[Run]]:
    """The runs by what can be one program, in their order.

    Args:
        base: what they share, from `base_of`.
        runs: of a plan.
        most: how many go together at most; a run stays beside the one whose share it takes.

    Example:
        >>> from pb_jax.study import make_plan, parse_rules
        >>> runs = make_plan({}, parse_rules("none,kde_otsu,kde_otsu:mode=gradients"), seeds=2)
        >>> [[run.label for run in group] for group in groups_of({}, runs, most=9)]
        [['none', 'kde_otsu', 'none', 'kde_otsu'], ['kde_otsu(mode=gradients)', \
'kde_otsu(mode=gradients)']]
    """
    groups: dict[str, list[list[Run]]] = {}
    for run in runs:
        flat = flatten(configuration(base, run))
        shared = {key: value for key, value in flat.items() if key not in _OWN}
        # The thresholds of a rule by leaf are as many as there are leaves.
        shared["by leaf"] = flat["freeze.scope"] == _BY_LEAF
        if run.rule == "none":  # it has no mask: it may go with any
            shared |= {"freeze.mode": "updates", "freeze.batches": 1}
        same = groups.setdefault(json.dumps(shared, sort_keys=True), [[]])
        if len(same[-1]) >= most:
            same.append([])
        home = next((g for g in same if run.share_of in {r.folder for r in g}), same[-1])
        home.append(run)
    return [group for same in groups.values() for group in same]


def run_groups(
    folder: Path,
    base: Mapping[str, Any],
    runs: Sequence[Run],
    make_task: Callable[[Mapping[str, Any]], training.Task],
    *,
    most: int,
    enough: Callable[[float], bool] = lambda seconds: False,
    stream: TextIO | None = None,
    **options: Any,
) -> tuple[bool, list[Failure]]:
    """Train what is not finished of a plan, group by group.

    A group for which the device lacks memory is trained in halves; one that fails otherwise does
    not stop the others. What it said is in `log.txt` of each of its runs.

    Args:
        folder: of the study.
        base: what its runs share.
        runs: of its plan.
        make_task: see `run_together`.
        most: how many runs go together at most.
        enough: told the seconds of each epoch, and 0 before each group; True stops.
        stream: where progress goes; None: standard output.
        **options: of `run_together`.

    Returns:
        Whether all has been tried, and the runs that failed.

    Raises:
        UserError: the configuration does not allow it.
    """
    failures: list[Failure] = []
    waiting = groups_of(base, runs, most)
    while waiting:
        group = waiting.pop(0)
        epochs = configuration(base, group[0])["epochs"]
        failed = {failure.run.folder for failure in failures}
        left = [run for run in group if not is_finished(folder, run, epochs)]
        failures += [
            Failure(run, f"it takes the frozen share of {run.share_of}")
            for run in left
            if run.share_of in failed
        ]
        left = [run for run in left if run.share_of not in failed]
        if not left:
            continue
        if enough(0.0):
            return False, failures
        try:
            given = {"enough": enough, "stream": stream, **options}
            if not run_together(folder, base, left, make_task, **given):
                return False, failures
        except UserError:
            raise
        except Exception as error:  # of the device, of its compiler, of memory: many kinds
            half = len(left) // 2
            if half and _lacks_memory(error):
                waiting[:0] = [left[:half], left[half:]]  # who gives a share is before who takes it
                said = f"not enough memory for {len(left)} runs side by side: trained in halves"
            else:
                first, _, _ = str(error).strip().partition("\n")
                said = f"{type(error).__name__}: {first[:200]}"
                failures += [Failure(run, f"{said}; see {_logged(folder, run)}") for run in left]
            print(said, file=stream or sys.stdout, flush=True)
    return True, failures


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")


def _logged(folder: Path, run: Run) -> Path:
    """The log of a run, with the error that is being handled."""
    path = folder / run.folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(traceback.format_exc())
    return path


def run_together(
    folder: Path,
    base: Mapping[str, Any],
    runs: Sequence[Run],
    make_task: Callable[[Mapping[str, Any]], training.Task],
    *,
    side_by_side: str = "vmap",
    enough: Callable[[float], bool] = lambda seconds: False,
    every_epochs: int = 10,
    compiler_options: dict[str, Any] | None = None,
    stream: TextIO | None = None,
) -> bool:
    """Train what is not finished of a group; returns whether all of it is now.

    Args:
        folder: of the study.
        base: what its runs share.
        runs: of one of `groups_of`.
        make_task: from a resolved configuration; with the initial arrays that its seed makes.
        side_by_side: see `fit_together`, as for the rest.
        enough: told the seconds of each epoch; True saves and stops.
        every_epochs: how often to save.
        compiler_options: as `jax.jit` takes them.
        stream: where progress goes; None: standard output.
    """
    epochs = configuration(base, runs[0])["epochs"]
    left = [run for run in runs if not is_finished(folder, run, epochs)]
    if not left:
        return True
    configs = [configuration(base, run, _known_share(folder, run, left)) for run in left]
    tasks = [make_task(config) for config in configs]
    steps = tasks[0].steps_per_epoch
    learning_rate, optimizer = training.make_optimizer(configs[0], steps)
    if isinstance(learning_rate, Plateau):
        raise UserError("optimizer.patience is not for runs that train side by side")
    if any(config["freeze"]["compact"] for config in configs):
        raise UserError(
            "freeze.compact=True is not for runs that train side by side: their optimizer state "
            "stays dense, which freeze.compact=None allows"
        )
    rules: dict[str, pb_jax.Rule] = {}
    members = []
    for run, config, task in zip(left, configs, tasks, strict=True):
        workdir = folder / run.folder
        workdir.mkdir(parents=True, exist_ok=True)
        freezing = training.make_freezing(config, steps)
        place = next((i for i, other in enumerate(left) if other.folder == run.share_of), None)
        if freezing is not None:
            # Members with the same rule share its compiled program.
            key = json.dumps(config["freeze"], sort_keys=True)
            freezing = dataclasses.replace(freezing, rule=rules.setdefault(key, freezing.rule))
        members.append(
            Member(
                workdir,
                config["seed"],
                task.params,
                task.model_state,
                freezing,
                place,
                None if place is None else _rule_for_share(config),
            )
        )
    names = "\n".join(run.folder for run in left)
    scratch = folder / CHECKPOINTS / hashlib.sha256(names.encode()).hexdigest()[:16]
    scratch.mkdir(parents=True, exist_ok=True)
    print(f"{len(left)} runs side by side: {_named(left)}", file=stream or sys.stdout, flush=True)
    summaries = fit_together(
        tasks[0],
        members,
        optimizer,
        scratch,
        epochs=epochs,
        learning_rate=learning_rate,
        side_by_side=side_by_side,
        every_epochs=every_epochs,
        enough=enough,
        compiler_options=compiler_options,
        stream=stream,
    )
    if summaries is None:
        return False
    for run, config, summary in zip(left, configs, summaries, strict=True):
        flat = flatten(config)
        if run.share_of is not None:
            flat[SHARE] = summary["frozen_fraction"]
        write_json(folder / run.folder / "config.json", nest(flat))
    return True


def is_finished(folder: Path, run: Run, epochs: int) -> bool:
    """Whether a run of the study has all its epochs behind it."""
    result = read_result(folder, run)
    wanted = (result.summary.get("epochs"), result.summary.get("epochs_asked"))
    return result.state == "finished" and epochs in wanted


def _known_share(folder: Path, run: Run, left: Sequence[Run]) -> float | None:
    """What another, finished run has frozen; None where it is trained along."""
    if run.share_of is None or run.share_of in {other.folder for other in left}:
        return None
    source = read_result(folder, dataclasses.replace(run, folder=run.share_of))
    if source.state != "finished":
        raise UserError(f"{run.title} takes the frozen share of {run.share_of}, which is not run")
    return float(source.summary["frozen_fraction"])


def _rule_for_share(config: Mapping[str, Any]) -> Callable[[float], pb_jax.Rule]:
    def make(share: float) -> pb_jax.Rule:
        return training.make_rule({**config, "freeze": {**config["freeze"], "frozen": share}})

    return make


def _named(runs: Sequence[Run]) -> str:
    labels = dict.fromkeys(run.label for run in runs)
    return ", ".join(f"{label} ({sum(run.label == label for run in runs)})" for label in labels)

"""`study.json`: which runs a study has, so that tables can be made from its folder alone."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json
from pb_jax.study.plan import Run
from pb_jax.training.workdir import differences, listed

FILE = "study.json"


class Study(NamedTuple):
    """A study as its folder has it.

    Attributes:
        config: the config file, as it was given.
        base: flat configuration that all runs share.
        runs: all that were planned, in the order of the plan.
        commands: that have run some of them.
    """

    config: str
    base: Mapping[str, Any]
    runs: tuple[Run, ...]
    commands: tuple[str, ...] = ()


def settle(folder: Path, study: Study) -> Study:
    """Write `study.json`; the runs of an earlier plan in the same folder stay in it.

    Args:
        folder: made where it is missing.
        study: what is to be run now.

    Returns:
        The study with the runs of both plans, those of this one first.

    Raises:
        UserError: the folder holds a study of another configuration, or cannot be written.
    """
    runs, commands = study.runs, study.commands
    if (folder / FILE).exists():
        before = read(folder)
        _check_same("the study", before.base, study.base, folder)
        known = {run.folder: run for run in before.runs}
        for run in study.runs:
            if run.folder in known:
                _check_same(run.title, known[run.folder].settings, run.settings, folder)
        commands = tuple(dict.fromkeys((*before.commands, *commands)))
        new = {run.folder for run in study.runs}
        runs = (*study.runs, *(run for run in before.runs if run.folder not in new))
    merged = study._replace(runs=runs, commands=commands)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, merged)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    return merged


def write(folder: Path, study: Study) -> None:
    """Write `study.json` into an existing folder."""
    write_json(
        folder / FILE,
        {
            "config": study.config,
            "commands": list(study.commands),
            "base": dict(study.base),
            "runs": [dataclasses.asdict(run) for run in study.runs],
        },
    )


def read(folder: Path) -> Study:
    """Read `study.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / FILE
    try:
        content = read_json(path)
        base = {key: _tuples(value) for key, value in content["base"].items()}
        runs = tuple(map(_run, content["runs"]))
        return Study(str(content["config"]), base, runs, tuple(map(str, content["commands"])))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; is {folder} the folder of a study?") from error
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run study.py in another folder") from error


def _run(content: Mapping[str, Any]) -> Run:
    """A run as it was written.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is damaged.
    """
    whole = {key: _all_tuples(content[key]) for key in ("point", "settings")}
    run = Run(**{**content, **whole})
    for name in ("folder", "label", "rule"):
        if not isinstance(getattr(run, name), str):
            raise TypeError(f"{name} of a run is {getattr(run, name)!r:.100}")
    for folder in (run.folder, *([] if run.share_of is None else [run.share_of])):
        path = Path(folder)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{folder!r:.100} is no folder inside of the study's")
    if not isinstance(run.seed, int) or isinstance(run.seed, bool):
        raise TypeError(f"seed of a run is {run.seed!r:.100}")
    return run


def _check_same(what: str, before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    if changed := differences(before, now):
        raise UserError(
            f"{folder} holds {what} with another configuration:\n{listed(changed)}\n"
            "Give the same configuration to go on with it, or another --workdir."
        )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _all_tuples(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuples(value) for key, value in mapping.items()}

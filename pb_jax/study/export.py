"""A study's folder without what is large or of the machine: what can be kept under `results/`."""

import shlex
import shutil
from pathlib import Path
from typing import Any

from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json
from pb_jax.study import record

_HERE = ("dataset.data_dir", "dataset.source_dir")
_COPIED = ("metrics.jsonl", "summary.json")


def export(folder: Path, target: Path, *, masks: bool = True) -> list[Path]:
    """Copy a study without checkpoints, logs and the paths of this machine.

    Args:
        folder: of the study.
        target: made where it is missing; what it holds of an earlier export is replaced.
        masks: also copy what was seen when masks were made, of each cell's first seed.

    Returns:
        The files written.

    Raises:
        UserError: the study's plan is missing or damaged, or the target cannot be written.
    """
    study = record.read(folder)
    first = min(run.seed for run in study.runs)
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        base = {key: None if key in _HERE else value for key, value in study.base.items()}
        commands = tuple(without_paths(command) for command in study.commands)
        record.write(target, study._replace(base=base, commands=commands))
        written.append(target / record.FILE)
        for run in study.runs:
            source, copy = folder / run.folder, target / run.folder
            if not (source / "config.json").exists():
                continue
            copy.mkdir(parents=True, exist_ok=True)
            config = read_json(source / "config.json")
            write_json(copy / "config.json", _anywhere(config))
            names = [name for name in _COPIED if (source / name).exists()]
            if masks and run.seed == first:
                names += [path.name for path in sorted(source.glob("mask_step_*.npz"))]
            for name in names:
                shutil.copyfile(source / name, copy / name)
            written += [copy / name for name in ("config.json", *names)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"cannot export {folder} to {target}: {error}") from error
    return written


def without_paths(command: str) -> str:
    """The command as anyone may give it.

    Example:
        >>> without_paths("study.py --rules=none --workdir /x/y --config.dataset.source_dir=/z")
        'study.py --rules=none --config.dataset.source_dir=DIR'
    """
    words, kept = iter(shlex.split(command)), []
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag.lstrip("-") == "workdir":
            if not equals:
                next(words, None)
        elif flag.lstrip("-").removeprefix("config.") in _HERE:
            if not equals:
                next(words, None)
            kept.append(f"{flag}=DIR")
        else:
            kept.append(word)
    return shlex.join(kept)


def _anywhere(config: dict[str, Any]) -> dict[str, Any]:
    dataset = {**config["dataset"], "data_dir": None, "source_dir": None}
    return {**config, "dataset": dataset}

r"""Compare rules over several seeds: how much does freezing cost, and against which controls?

usage: python study.py --config configs/NAME.py --rules RULE,... [--seeds N] [--workdir DIR]
                       [--grid KEY=VALUE,...]... [--jobs N] [--share-start]
                       [--together vmap|map|faster] [--config.KEY=VALUE ...]

  python study.py --config configs/digits_pb.py --rules none,kde_otsu,random --seeds 3
      full training, the paper's rule, and as many weights frozen at random
  python study.py --config configs/digits_pb.py --rules none,kde_otsu,random \
      --grid freeze.coverage=0.8,0.9,0.95,0.99
      the same for four values of a config key; full training is run once
  python study.py --config configs/lenet5_pb.py --seeds 3 \
      --rules none,quantile:frozen=0.937,random:frozen=0.937,fixed_threshold:threshold=0.5
      the paper's frozen share and threshold

  --config FILE    the experiment that all runs share; those that come along are in configs/
  --rules LIST     RULE[@LABEL][:KEY=VALUE,...], separated by commas: a rule and what it sets among
                   the freeze.* keys, such as kde_otsu:start_epoch=1,label=at_initialisation.
                   RULE@LABEL takes the share that the rule LABEL froze with the same seed; rules
                   that need a share and have none take that of kde_otsu, or of the first rule in
                   the list that finds its own
  --seeds N        seeds, from --config.seed on; default: 3
  --grid KEY=...   values of a config key; given again, every combination. A key that can change
                   nothing for a rule is not varied there
  --workdir DIR    where everything is written; default: runs/, the experiment's name and _study
  --jobs N         runs at a time, each on its own part of the cores; default: 1
  --share-start    train the epochs before the masks once for each seed, in DIR/starts/; the runs
                   go on from there, full training too
  --together HOW   train runs that differ in seed and mask as one program in this process, for
                   accelerators and classifiers: vmap (all at once), map (one after the other),
                   or whichever is faster in the first epoch
  --most N         so many in a program at most; default: 9
  --debug          show the stack trace of an error
  --help           this text

The same command again goes on where it was stopped, run by run and within a run; more rules, seeds
or values may be added. A run that fails is reported, and the others are run. DIR holds at the end:

  table.md, table.json  each run; mean, standard deviation, differences seed by seed
  figures/              curves, accuracy against frozen share, sensitivity to the grid's keys
  runs/RULE/seed_N/     the runs, as train.py leaves them, with what they printed in log.txt

`python -m pb_jax.study tables DIR` makes tables and figures again.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from pb_jax import program
from pb_jax.errors import UserError

TRAIN = Path(train.__file__).resolve()


def main(argv: Sequence[str]) -> int:
    """The program; returns its exit status.

    0: all runs are finished; 1: a run has failed; 2: something the user can mend; 130, 143: stopped
    by Ctrl-C or SIGTERM.
    """
    return program.run(
        lambda: _main(argv),
        debug="--debug" in argv,
        stopped=f"\nstopped; this goes on:\n  python {shlex.join(argv)}",
    )


def _main(argv: Sequence[str]) -> int:
    from pb_jax import study

    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(__doc__)
        return 0
    options, rest = _options(argv[1:])
    parsed = train.parse([argv[0], *rest])
    choices = study.parse_rules(options.rules)
    plan = study.make_plan(parsed.config, choices, options.seeds, study.parse_grid(options.grid))
    base = study.base_of(parsed.config)
    for run in plan:
        config = study.configuration(base, run)
        train.check_names(config)
        _check_devices(config, bool(options.together))
    folder = Path(options.workdir or f"runs/{Path(options.config).stem}_study")
    whole = study.settle(
        folder, study.Study(options.config, base, plan, (f"python {shlex.join(argv)}",))
    )
    print(f"{len(plan)} runs in {folder}", flush=True)
    if options.together:
        failures = together(folder, base, plan, options.together, options.most)
    else:
        executor = study.Executor(
            folder,
            lambda run, share, source: command(folder, whole, run, share, source),
            lambda run: study.configuration(base, run)["epochs"],
            starts=study.starts_of(base, plan) if options.share_start else None,
            jobs=options.jobs,
            stream=sys.stdout,
        )
        failures = executor.run(plan)
    paths = study.write_report(folder)
    print(f"\n{paths[0].read_text(encoding='utf-8')}")
    print("\n".join(map(str, paths)))
    print(f"\nits runs on one page: python -m pb_jax.reports {shlex.quote(str(folder))}")
    for failure in failures:
        print(f"failed: {failure.run.title}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's own flags, and those that belong to `train.py`."""
    parser = argparse.ArgumentParser(
        prog="study.py", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", default="")
    parser.add_argument("--rules", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", action="append", default=[])
    parser.add_argument("--workdir")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--share-start", action="store_true")
    parser.add_argument("--together", choices=("vmap", "map", "faster"))
    parser.add_argument("--most", type=int, default=9)
    try:
        options, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(f"{error}\nSee python study.py --help.") from error
    if not options.rules:
        raise UserError(
            "say which rules to compare, as in --rules none,kde_otsu,random; "
            "see python study.py --help"
        )
    if options.share_start and options.together:
        raise UserError("--share-start is for runs that are processes; leave --together out")
    for name in ("jobs", "most"):
        if getattr(options, name) < 1:
            value = getattr(options, name)
            raise UserError(f"--{name} {value} is not allowed: a whole number, at least 1")
    return options, [*([f"--config={options.config}"] if options.config else []), *rest]


def _check_devices(config: Mapping[str, Any], together: bool) -> None:
    """Raise a `UserError` where a study cannot train on the devices that are asked for."""
    if config["distributed"]:
        raise UserError(
            "a study starts all runs from one process: leave distributed out, or give single runs "
            "to train.py"
        )
    if together and config["mesh"]["data"] * config["mesh"]["fsdp"] > 1:
        raise UserError("--together is for one device: leave it out, or mesh.data and mesh.fsdp")


def together(
    folder: Path, base: Mapping[str, Any], plan: Sequence[Any], how: str, most: int
) -> Sequence[Any]:
    """Run the plan in this process, group by group; returns what failed."""
    import jax

    import models
    import pb_jax.data
    from pb_jax import study, training

    if base["model.name"] == training.CAPTIONER:
        raise UserError("--together is for classifiers; leave it out for the captioner")
    loaded: dict[str, pb_jax.data.Dataset] = {}

    def task(config: Mapping[str, Any]) -> training.Task:
        name = str(sorted(config["dataset"].items()))
        if name not in loaded:
            loaded[name] = pb_jax.data.load(**config["dataset"])
        return train.classification(config, loaded[name])

    _, failures = study.run_groups(
        folder,
        base,
        plan,
        task,
        most=most,
        side_by_side=how,
        compiler_options=models.compiler_options(jax.default_backend()),
    )
    return failures


def command(
    folder: Path, study: Any, run: Any, share: float | None, source: Path | None
) -> list[str]:
    """The command line of a run: what makes the config file's configuration into the run's."""
    return [
        sys.executable,
        str(TRAIN),
        f"--config={study.config}",
        f"--workdir={folder / run.folder}",
        *([] if source is None else [f"--start-from={source}"]),
        *flags(study.config, study.base, run, share),
    ]


def flags(config: str, base: Mapping[str, Any], run: Any, share: float | None) -> list[str]:
    """`--config.KEY=VALUE` for what a run's configuration has other than the config file says."""
    from pb_jax.study.choices import OF_RULES
    from pb_jax.study.plan import SHARE
    from pb_jax.training.config import flatten

    default = flatten(train.parse(["train.py", f"--config={config}"]).config)
    wanted = {
        **default,
        **{key: None for key in default if key in OF_RULES},
        **base,
        **run.settings,
    }
    if share is not None:
        wanted[SHARE] = share
    return [f"--config.{key}={value}" for key, value in wanted.items() if value != default[key]]


if __name__ == "__main__":
    program.end(main(sys.argv))

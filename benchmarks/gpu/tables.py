"""Tables 1 and 2 of the paper and the ablations, on one accelerator, in turns of ten minutes.

    python -m benchmarks.gpu.tables --data DIR --out DIR [--budget 570]

For each of the four networks, 110 epochs with 3 seeds: full training, the paper's rule, and as many
weights frozen at random; then the ablations, in the order of what they are worth. All rules and
seeds of a network are one program (see `pb_jax.study.together`).

The same command goes on where it was stopped: after `--budget` seconds it saves and ends by itself,
and killed at any moment it loses the epochs since the last checkpoint. It needs no network, and of
Python packages jax, flax, optax, orbax and matplotlib only. Runs for which there is not memory
enough side by side are trained in halves; a run that fails does not stop the others. Exit status: 0
when all is done, 3 when there is more to do, 1 when all has been tried and something failed.

    --data DIR     original files: mnist/*.gz; cifar-10-batches-py/, -bin/ or the archive
    --out DIR      `results.tar.gz`, the studies without checkpoints, and `progress.json`
    --work DIR     where the studies are while they run; default: pb_jax_tables in the temporary
                   folder. Keep it between calls
    --resume FILE  a `results.tar.gz` of before, for a machine that does not have --work any more
    --only LIST    parts of the work, of those that --list shows
"""

import argparse
import functools
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax

import models
import train
from pb_jax import study, training
from pb_jax.data import Dataset, sources, specs
from pb_jax.errors import UserError
from pb_jax.files import replacing, write_json
from pb_jax.study.choices import OF_RULES
from pb_jax.study.together import CHECKPOINTS
from pb_jax.training.ensemble import SIDE_BY_SIDE

NETWORKS = {"lenet5": "mnist", "vgg19": "cifar10", "resnet110": "cifar10", "densenet121": "cifar10"}
PAPER = {  # threshold and frozen share
    "lenet5": (0.5, 0.937),
    "vgg19": (0.04, 0.7968),
    "resnet110": (0.19, 0.4985),
    "densenet121": (0.45, 0.6907),
}
TABLES = "none,kde_otsu,random"
COMMAND = "python -m benchmarks.gpu.tables --data DIR --out DIR"
UNFINISHED = 3
_SAVING = 20.0  # seconds that a checkpoint and the archive may take


class Part(NamedTuple):
    """A part of the work: rules for a network, in a study of the network's name."""

    name: str
    network: str
    rules: str
    seeds: int


def parts(seeds: int) -> list[Part]:
    """All of the work, what is worth most first."""
    found = [Part(f"tables-{name}", name, TABLES, seeds) for name in NETWORKS]
    for network, (threshold, share) in PAPER.items():
        rules = (
            f"quantile:frozen={share},label=paper_share",
            f"random:frozen={share},label=paper_share_random",
            "quantile:frozen=0.3,largest=true,label=largest_30",
            "random:frozen=0.3,label=random_30",
            f"fixed_threshold:threshold={threshold},label=paper_threshold",
            "random@paper_threshold",
        )
        found.append(Part(f"paper-{network}", network, ",".join(rules), seeds))
    for network in NETWORKS:
        rules = (
            "kde_otsu",
            "random:scope=leaf,label=random_by_leaf",
            "weight_magnitude",
            "mean_threshold",
            "random@mean_threshold",
            "kde_otsu:start_epoch=1,label=at_initialisation",
            "random@at_initialisation",
            "kde_otsu:start_epoch=2,label=after_1_epoch",
            "kde_otsu:start_epoch=6,label=after_5_epochs",
            "random@after_5_epochs",
            "kde_otsu:refresh_epochs=35,label=refresh_35",
            "kde_otsu:stop_epoch=110,label=last_epoch_full",
            "kde_otsu:mode=gradients,label=gradients_only",
            "random@gradients_only",
            "kde_otsu:batches=10,label=ten_batches",
            "kde_otsu:batch_size=1000,label=batch_1000",
        )
        found.append(Part(f"ablations-{network}", network, ",".join(rules), seeds))
    for network in NETWORKS:
        rules = [
            *(f"kde_otsu:coverage={c},label=coverage_{c}" for c in (0.8, 0.9, 0.99)),
            *(f"random@coverage_{c}" for c in (0.8, 0.9, 0.99)),
            *(f"kde_otsu:bins={bins},label=bins_{bins}" for bins in (100, 1000)),
            "kde_otsu:bandwidth=silverman,label=silverman",
            "kde_otsu:scope=leaf,label=kde_otsu_by_leaf",
            "random@kde_otsu_by_leaf:scope=leaf",
        ]
        found.append(Part(f"estimate-{network}", network, ",".join(rules), seeds))
    return found


def base_config(network: str, epochs: int) -> dict[str, Any]:
    """The paper's settings, as `configs/` has them, for `pb_jax.training.resolve`."""
    return {
        "epochs": epochs,
        "batch_size": 100,
        "model": {"name": network},
        "optimizer": {
            "name": "amsgrad_torch",
            "learning_rate": 1e-3,
            "boundaries": (40, 80),
            "decay": 0.1,
        },
        "dataset": {"name": NETWORKS[network]},
    }


def full_base(network: str, epochs: int) -> dict[str, Any]:
    """Every key that the runs of a network share."""
    given = study.base_of(base_config(network, epochs))
    own = {*OF_RULES, "freeze.rule"}
    return {key: k.default for key, k in training.KEYS.items() if key not in own} | given


@functools.cache
def load(name: str, folder: Path) -> Dataset:
    """A dataset from its original files, without TFDS."""
    spec = specs.find(name)
    content = sources.read(spec, folder)
    return Dataset(
        name=name,
        train=content["train"],
        test=content["test"],
        num_classes=spec.geometry.num_classes,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
    )


class Clock:
    """Says when a call has to end."""

    def __init__(self, budget: float) -> None:
        self._end = time.monotonic() + budget

    def enough(self, seconds: float) -> bool:
        """Whether another epoch of `seconds` might not end in time."""
        return time.monotonic() + 1.5 * seconds + _SAVING > self._end


def run_part(part: Part, options: argparse.Namespace, clock: Clock) -> tuple[bool, list[str]]:
    """Go on with a part; returns whether all of it has been tried, and what failed."""
    folder = options.work / part.network
    base = full_base(part.network, options.epochs)
    plan = study.make_plan(
        base_config(part.network, options.epochs), study.parse_rules(part.rules), part.seeds
    )
    study.settle(folder, study.Study(f"configs/{part.network}_pb.py", base, plan, (COMMAND,)))

    def task(config: Mapping[str, Any]) -> training.Task:
        data = load(config["dataset"]["name"], options.data)
        if options.limit:
            data = data._replace(
                train=data.train.first(options.limit), test=data.test.first(options.limit)
            )
        return train.classification(config, data)

    done, failures = study.run_groups(
        folder,
        base,
        plan,
        task,
        most=options.most,
        side_by_side=options.together,
        enough=clock.enough,
        compiler_options=models.compiler_options(jax.default_backend()),
    )
    return done, [f"{failure.run.title}: {failure.reason}" for failure in failures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what there is time for; returns the exit status."""
    options = _parser().parse_args(arguments)
    work = parts(options.seeds)
    named = options.only.split(",") if options.only else [part.name for part in work]
    try:
        for name in named:
            training.check_known(name, [part.name for part in work], "part")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(part.name for part in work))
        return 0
    work = [part for part in work if part.name in named]
    clock, began = Clock(options.budget), time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.work / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if options.resume is not None:
        _unpack(options.resume, options.work)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    failed: dict[str, list[str]] = {}  # by the parts that have been tried to their end
    try:
        for part in work:
            print(f"== {part.name} ({time.monotonic() - began:.0f} s)", flush=True)
            tried, failures = run_part(part, options, clock)
            for failure in failures:
                print(f"failed: {failure}", file=sys.stderr)
            if not tried:
                break
            failed[part.name] = failures
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        _pack(options, work, failed, time.monotonic() - began)
    if len(failed) < len(work):
        return UNFINISHED
    return 1 if any(failed.values()) else 0


def _pack(
    options: argparse.Namespace,
    work: Sequence[Part],
    failed: Mapping[str, Sequence[str]],
    seconds: float,
) -> None:
    """Write what is small into `--out`."""
    networks = dict.fromkeys(part.network for part in work)
    with replacing(options.out / "results.tar.gz") as path, tarfile.open(path, "w:gz") as archive:
        for network in networks:
            folder = options.work / network
            for file in sorted(folder.rglob("*")) if folder.exists() else []:
                inside = file.relative_to(options.work)
                # Of the masks, one seed's: they are for figures.
                mask = file.suffix == ".npz" and "seed_0" in inside.parts
                small = file.suffix in (".json", ".jsonl") or mask
                if small and CHECKPOINTS not in inside.parts:
                    archive.add(file, str(inside))
    write_json(
        options.out / "progress.json",
        {
            "date": date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "seconds": round(seconds, 1),
            "done": [part.name for part in work if failed.get(part.name) == []],
            "failed": {name: reasons for name, reasons in failed.items() if reasons},
            "left": [part.name for part in work if part.name not in failed],
        },
    )


def _unpack(file: Path, work: Path) -> None:
    """Bring back the finished runs of an archive; unfinished ones have no checkpoint."""
    with tarfile.open(file) as archive:
        names = set(archive.getnames())
        for member in archive:
            finished = str(Path(member.name).parent / "summary.json") in names
            wanted = finished or Path(member.name).name == "study.json"
            if member.isreg() and wanted and not (work / member.name).exists():
                archive.extract(member, work, filter="data")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pb_jax_tables")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--budget", type=float, default=570.0, help="seconds")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--epochs", type=int, default=110)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--together", choices=SIDE_BY_SIDE, default="faster")
    parser.add_argument("--most", type=int, default=9, help="runs in one program")
    parser.add_argument("--limit", type=int, help="examples, to try the script out")
    return parser


if __name__ == "__main__":
    sys.exit(main())

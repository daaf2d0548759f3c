"""Train a network with partial backpropagation: first fully, then only the weights that matter.

usage: python train.py --config configs/NAME.py [--workdir DIR] [--start-from DIR]
                       [--config.KEY=VALUE ...]

  python train.py --config configs/digits_pb.py
      the quickstart: small, real images that need no download
  python train.py --config configs/lenet5_pb.py --config.dataset.source_dir=DIR
      LeNet-5 on MNIST from original files that you have; without source_dir they are downloaded
  python train.py --config configs/lenet5_pb.py --config.freeze.rule=none --workdir runs/full
      full training, to compare with
  python train.py --config configs/shapes_captioner_pb.py
      an attention LSTM that describes pictures; caption.py then describes yours

  --config FILE    an experiment; those that come along are in configs/
  --workdir DIR    where everything is written; default: runs/ and the experiment's name
  --start-from DIR take the epochs before the first mask from a run that differs in freeze.* only
  --debug          show the stack trace of an error
  --help           this text

On several devices --config.mesh.data=N splits each batch over N of them, --config.mesh.fsdp=M each
parameter over M. Several processes, one a host, are started with the same command and
--config.distributed=true; where JAX does not find them by itself (it does on SLURM, Open MPI, cloud
TPUs), with --config.processes.coordinator=HOST:PORT, .count=N and .index=0 to N-1 too.
JAX_PLATFORMS=cpu, cuda or tpu in the environment says what computes; with NO_COLOR=1 there the
moving line is without colours.

The same command again resumes a run that was stopped, and gives the same result as if it had not
been; a finished run may be given more epochs. Ctrl-C and SIGTERM save the state at the step (on
accelerators: of the epoch) and end; a second one ends at once. Each epoch is judged on the test
split, which the paper calls validation ("val"); of captioners on their validation split, and the
best epoch on the test split once, at the end. DIR holds at the end:

  config.json      the whole configuration, every default filled in
  metrics.jsonl    a line for each epoch
  summary.json     accuracy, frozen share, threshold, seconds, versions
  mask_step_*.npz  what was seen when a mask was made
  figures/         drawn from the above
  checkpoints/     the latest and the best
  tensorboard/     the metrics once more
  vocabulary.json, test_captions.json, test_attention.npz   of captioners
"""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pb_jax import program
from pb_jax.errors import UserError

if TYPE_CHECKING:
    from models import Captioner
    from models.encoders import Encoder
    from pb_jax.data import Dataset
    from pb_jax.training import Placement, Task

SAMPLES, SAMPLE_SIZE = 6, 192  # test pictures kept with their attention; pixels of a side
CONFIGS = Path(__file__).resolve().parent / "configs"


def train_and_evaluate(
    config: Mapping[str, Any], workdir: str | Path, start_from: str | Path | None = None
) -> dict[str, Any]:
    """Run an experiment, or go on with the one that `workdir` holds.

    Args:
        config: with the keys of `pb_jax.training.keys_of`; those that are missing are defaults.
        workdir: made where it is missing.
        start_from: folder of a run that differs in what it freezes only; a new run takes its
            epochs before any mask as its own.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: something the user can mend.
    """
    import jax

    import models
    from pb_jax import training

    # ------------------------------------------------------------------------------------------
    # Configuration: check it, fill in defaults, compare with the run that may be in workdir.
    # ------------------------------------------------------------------------------------------
    config = training.resolve(config)
    captions = config["model"]["name"] == training.CAPTIONER
    check_names(config)
    training.connect(config)
    placement = make_placement(config)
    workdir = Path(workdir)
    if start_from is not None:
        start_from = Path(start_from)
        training.check_start(config, start_from)
    with contextlib.ExitStack() as stack:
        if not training.is_first():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        training.on_first(lambda: stack.enter_context(training.exclusive(workdir)))
        training.on_first(lambda: training.settle(config, workdir))
        summary = training.on_first(lambda: training.finished(workdir, config["epochs"]))
        if summary is not None:
            print(f"{workdir} holds a finished run; --config.epochs=N with a larger N goes on")
            training.on_first(lambda: draw(workdir, again=False))
            return summary

        # --------------------------------------------------------------------------------------
        # Data and model: the task.
        # --------------------------------------------------------------------------------------
        task = captioning(config, workdir) if captions else classification(config)

        # --------------------------------------------------------------------------------------
        # Optimizer, and what it is to freeze.
        # --------------------------------------------------------------------------------------
        learning_rate, optimizer = training.make_optimizer(config, task.steps_per_epoch)
        freezing = training.make_freezing(config, task.steps_per_epoch)
        start = config["freeze"]["start_epoch"]
        if freezing is not None and start > config["epochs"]:
            print(f"nothing will be frozen: freeze.start_epoch={start} is after the last epoch")

        # --------------------------------------------------------------------------------------
        # Training, and the figures that show it.
        # --------------------------------------------------------------------------------------
        count = "" if placement is None else f"{placement.size} x "
        print(f"{config['model']['name']} on {count}{jax.devices()[0].device_kind}, in {workdir}")
        summary = training.fit(
            task,
            optimizer,
            workdir,
            epochs=config["epochs"],
            learning_rate=learning_rate,
            freezing=freezing,
            start_from=start_from,
            seed=config["seed"],
            every_epochs=config["checkpoint"]["every_epochs"],
            keep=config["checkpoint"]["keep"],
            compiler_options=models.compiler_options(jax.default_backend()),
            placement=placement,
        )
        training.on_first(lambda: draw(workdir))
        return summary


def make_placement(config: Mapping[str, Any]) -> "Placement | None":
    """Where arrays are, on the devices that `mesh.*` asks for; None: on one."""
    import jax

    from pb_jax import training

    data, fsdp = config["mesh"]["data"], config["mesh"]["fsdp"]
    return None if data * fsdp * jax.process_count() == 1 else training.Placement(data, fsdp)


def draw(workdir: Path, *, again: bool = True) -> None:
    """The figures of a run; not `again`: if it was stopped just before they were drawn."""
    from pb_jax import reports

    if again or not (workdir / "figures").exists():
        reports.write_figures(workdir)


def check_names(config: Mapping[str, Any]) -> None:
    """Raise a `UserError` unless the model, its encoder and the data exist and go together."""
    import models
    import pb_jax.data
    from pb_jax import training

    name = config["model"]["name"]
    training.check_known(name, (*models.NAMES, training.CAPTIONER), "model.name")
    known = pb_jax.data.DATASETS
    if name == training.CAPTIONER:
        known = pb_jax.data.CAPTION_DATASETS
        training.check_known(config["encoder"]["name"], models.encoders.NAMES, "encoder.name")
    training.check_known(config["dataset"]["name"], known, "dataset.name")


def classification(config: Mapping[str, Any], data: "Dataset | None" = None) -> "Task":
    """Labelled images, uint8 in memory and normalised on the device, and a network for them.

    Args:
        config: from `pb_jax.training.resolve`.
        data: the images; None: those that `dataset.*` names are loaded.
    """
    import jax.numpy as jnp
    from flax import nnx

    import models
    import pb_jax.data
    from pb_jax import training

    if data is None:
        data = pb_jax.data.load(**config["dataset"])
        print(
            f"{data.name}: {len(data.train.labels):,} images to train on, "
            f"{len(data.test.labels):,} to judge by, {data.num_classes} classes"
        )
    model = models.create(
        config["model"]["name"],
        data.num_classes,
        rngs=nnx.Rngs(config["seed"]),
        dtype=jnp.dtype(config["model"]["dtype"]),
        precision=config["model"]["matmul_precision"],
    )
    if config["model"]["weights"] is not None:
        models.load_torch(model, config["model"]["weights"])
    return training.Classification(model, data, config["batch_size"])


def captioning(config: Mapping[str, Any], workdir: Path) -> "Task":
    """Pictures with captions, as features of a frozen encoder or as they are, and a captioner."""
    import models
    import pb_jax.data
    from pb_jax import training

    encoder, make_model = captioner(config)  # before the data: its weights may be missing
    data = pb_jax.data.load_captions(**config["dataset"])
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = ", ".join(f"{len(s.images):,} {name}" for name, s in splits.items())
    print("\n".join([f"{data.name}: {counts} pictures, five captions each", *data.notes]))
    words = (caption for captions in data.train.captions for caption in captions)
    vocabulary = pb_jax.data.Vocabulary.build(words, config["captioner"]["min_count"])
    training.on_first(lambda: vocabulary.save(workdir / training.VOCABULARY))

    def pictures(split: pb_jax.data.CaptionSplit) -> training.Pictures:
        if not encoder.frozen:
            inputs = split.images.read(range(len(split.images)), encoder.image_size)
        else:
            inputs = pb_jax.data.compute_or_map(
                split.images,
                models.encoders.compiled(encoder),
                image_size=encoder.image_size,
                shape=(*encoder.grid, encoder.channels),
                fingerprint=encoder.fingerprint(),
                folder=pb_jax.data.root_dir(config["dataset"]["data_dir"]) / "features",
            )
        return training.Pictures(split.images.names, inputs, split.captions)

    return training.Captioning(
        make_model(len(vocabulary)),
        pictures(data.train),
        pictures(data.validation),
        pictures(data.test),
        vocabulary,
        config["batch_size"],
        regularisation=config["captioner"]["regularisation"],
        search=training.Search(**config["generation"]),
        samples=training.Samples(
            data.test.images.read(range(min(SAMPLES, len(data.test.images))), SAMPLE_SIZE),
            encoder.grid,
        ),
    )


def captioner(config: Mapping[str, Any]) -> "tuple[Encoder, Callable[[int], Captioner]]":
    """The encoder of an experiment, and what makes its captioner for a number of words.

    A captioner whose encoder trains holds it.
    """
    import jax.numpy as jnp
    from flax import nnx

    import models

    computed: dict[str, Any] = {
        "rngs": nnx.Rngs(config["seed"]),
        "dtype": jnp.dtype(config["model"]["dtype"]),
        "precision": config["model"]["matmul_precision"],
    }
    chosen = config["encoder"]
    encoder = models.encoders.create(chosen["name"], weights=chosen["weights"], **computed)
    sizes = {k: config["captioner"][k] for k in ("hidden", "embedding", "attention", "dropout")}

    def make(words: int) -> "Captioner":
        return models.Captioner(
            words,
            channels=encoder.channels,
            encoder=None if encoder.frozen else encoder,
            **sizes,
            **computed,
        )

    return encoder, make


# ----------------------------------------------------------------------------------------------
# The command line.
# ----------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """What the command line says."""

    config: Any
    workdir: Path
    start_from: Path | None = None


def parse(argv: Sequence[str]) -> Command:
    """Read flags and the config file.

    Args:
        argv: with the program's name first, as `sys.argv`.

    Raises:
        UserError: with what is wrong and a suggestion.
    """
    from absl import flags
    from ml_collections import config_flags

    from pb_jax import training

    for argument in argv[1:]:
        if argument.startswith(("--config.", "-config.")):
            training.check_known(argument.lstrip("-").partition("=")[0].removeprefix("config."))
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where to write", flag_values=values)
    flags.DEFINE_string("start-from", None, "the run to go on from", flag_values=values)
    flags.DEFINE_boolean("debug", False, "show stack traces", flag_values=values)
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=list(argv))
    path = _config_file(argv)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        message = str(error).replace("flag --", "").strip()
        raise UserError(f"{message}\nSee python train.py --help.") from error
    except Exception as error:  # a config file is a program: anything may go wrong in it
        raise UserError(f"in the config file {path}: {_in_short(error)}") from error
    if rest:
        raise UserError(f"{rest[0]!r} is no flag; see python train.py --help")
    config = values["config"].value
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise UserError(f"in the config file {path}: get_config returns {config!r:.200}, no config")
    workdir = values["workdir"].value or Path("runs") / path.stem
    source = values["start-from"].value
    return Command(config, Path(workdir), Path(source) if source else None)


def _config_file(argv: Sequence[str]) -> Path:
    """The file that `--config` names, without arguments after a colon."""
    known = ", ".join(sorted(f"configs/{path.name}" for path in CONFIGS.glob("*_pb.py")))
    for position, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            name = value if equals else "".join(argv[position + 1 : position + 2])
            path = Path(name.partition(":")[0])
            if not path.is_file():
                raise UserError(f"there is no config file {name!r}; there are {known}")
            return path
    _look_for_config(argv[1:])
    raise UserError(f"say which experiment with --config FILE; there are {known}")


def _look_for_config(arguments: Sequence[str]) -> None:
    """Raise a `UserError` where `--config` seems to be there, but is misspelt or left out."""
    from pb_jax import training

    known = [f"--{flag}" for flag in ("config", "workdir", "start-from", "debug", "nodebug")]
    for argument in arguments:
        flag = f"--{argument.partition('=')[0].lstrip('-')}"
        if not argument.startswith("-"):
            path = CONFIGS / f"{Path(argument).stem}.py"
            if argument.endswith(".py") or path.is_file():
                meant = argument if argument.endswith(".py") else f"configs/{path.name}"
                raise UserError(f"{argument!r} is no flag; did you mean --config {meant}?")
        elif not flag.startswith("--config."):
            training.check_known(flag, known, "flag")


def _in_short(error: Exception) -> str:
    """An error of a config file, without the dump of all keys that ml_collections adds."""
    if unknown := re.search(r'Key "([^"]+)" does not exist', str(error)):
        hint = re.search(r'Did you mean "([^"]+)"', str(error))
        return f"unknown key {unknown[1]!r}" + (f"; did you mean {hint[1]!r}?" if hint else "")
    return f"{type(error).__name__}: {str(error).strip()}"


def main(argv: Sequence[str]) -> int:
    """The program; returns its exit status.

    0: done; 1: the loss diverged; 2: something the user can mend; 3: another process of the run is
    gone; 130, 143: stopped by Ctrl-C or SIGTERM, and saved at the step if it was training.
    """
    status = program.run(
        lambda: _main(argv),
        debug="--debug" in argv,
        stopped=f"\nstopped; this resumes it:\n  python {shlex.join(argv)}",
    )
    if status in (1, 2) and "pb_jax.training" in sys.modules:  # else there was nobody to join
        from pb_jax import training

        training.leave(status)
    return status


def _main(argv: Sequence[str]) -> None:
    import models
    from pb_jax import training

    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(
            f"{__doc__}\nKeys of a configuration and their defaults (-: none, or the rule's own):"
        )
        print(f"\n{training.describe_keys()}")
        return
    command = parse(argv)
    models.reuse_host_memory()
    with training.peers_matter():
        summary = train_and_evaluate(*command)
    if not training.is_first():
        return
    print(f"\n{training.metrics.table(summary)}\n\n{describe_files(command.workdir)}")
    print(f"\nall of it on one page: python -m pb_jax.reports {shlex.quote(str(command.workdir))}")


def describe_files(workdir: Path) -> str:
    """The paths that a run has written."""
    figures = sorted((workdir / "figures").glob("*.png"))
    masks = sorted(workdir.glob("mask_step_*.npz"))
    names = ["summary.json", "metrics.jsonl", "config.json"]
    names += ["vocabulary.json", "test_captions.json", "test_attention.npz"]  # of captioners
    paths = [workdir / name for name in names if (workdir / name).exists()]
    return "\n".join(map(str, [*paths, *masks, *figures, workdir / "checkpoints"]))


if __name__ == "__main__":
    program.end(main(sys.argv))

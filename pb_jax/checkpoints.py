"""A run's checkpoints, and weights for other programs: `python -m pb_jax.checkpoints --help`."""

from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

from pb_jax import program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    return _commands().run(arguments)


def _commands() -> program.Commands:
    commands = program.Commands(
        "python -m pb_jax.checkpoints",
        "Look at the checkpoints of a run of train.py, and write weights for other programs. "
        "Both only read DIR: a run that is training there is not disturbed.",
    )
    folder = {"metavar": "DIR", "type": program.path, "help": "the --workdir of train.py"}
    show = commands.add(
        "show",
        _show,
        "list a run's checkpoints",
        "Print for each checkpoint its epoch, its form, the score by which the best is chosen, "
        "its bytes on the disk and its base. A full checkpoint stands alone; a delta holds "
        "what trains under the mask, and its base the frozen weights.",
    )
    show.add_argument("folder", **folder)
    export = commands.add(
        "export",
        _export,
        "write full weights to a .safetensors file",
        "Write parameters and batch statistics of one checkpoint to a .safetensors file, by\n"
        'their names in the model ("conv1.kernel", "norm1.mean"), in the shapes of training\n'
        "(convolutions: height, width, in, out; dense layers: in, out). Deltas are put\n"
        "together with their base. The file's metadata say model, dataset, epoch, score,\n"
        "share of frozen weights, and versions. The model's code is not needed.",
        stopped="interrupted; nothing half-written is left",
        formatter_class=RawDescriptionHelpFormatter,
        epilog=(
            "examples:\n"
            "  python -m pb_jax.checkpoints export runs/vgg19_pb vgg19.safetensors\n"
            "  python -m pb_jax.checkpoints export runs/vgg19_pb last.safetensors --epoch last\n"
            '  python -c "from safetensors.numpy import load_file; '
            "print(load_file('vgg19.safetensors').keys())\""
        ),
    )
    export.add_argument("folder", **folder)
    export.add_argument(
        "target", metavar="FILE.safetensors", type=program.path, help="the file to write"
    )
    export.add_argument(
        "--epoch",
        metavar="N|best|last",
        type=_epoch,
        default="best",
        help="which checkpoint, of those that `show` lists (default: best)",
    )
    export.add_argument("--force", action="store_true", help="replace a file that exists")
    return commands


def _show(options: Namespace) -> None:
    from pb_jax.training.compact import megabytes  # a second or two, so not at the top
    from pb_jax.training.export import best, listing

    found = listing(options.folder)
    chosen = best(found)
    print(f"{'epoch':>6}  {'form':<7}  {'score':>8}  {'on disk':>10}  base")
    for one in found:
        notes = ["best"] * (one is chosen)
        if one.base is not None:
            notes.insert(0, one.base.name + ("" if one.base.exists() else " (missing)"))
        row = f"{one.epoch:6}  {one.form:<7}  {one.score:8.4f}  {megabytes(one.size):>10}  "
        print((row + ", ".join(notes)).rstrip())
    for base in sorted({one.base for one in found if one.base and one.base.exists()}):
        print(f"base {base.name}: {megabytes(base.stat().st_size)}")


def _export(options: Namespace) -> None:
    from pb_jax.training.export import export  # a second or two, so not at the top

    done = export(options.folder, options.target, options.epoch, options.force)
    print(f"{options.target}: epoch {done.epoch}, {done.weights:,} numbers in {done.arrays} arrays")
    if done.left_out:
        print(f"left out, as no floating-point numbers: {', '.join(done.left_out)}")


def _epoch(text: str) -> int | str:
    if text in ("best", "last"):
        return text
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be a number, best or last, got {text!r}")
    return int(text)


if __name__ == "__main__":
    program.end(main())

"""A run's checkpoints, and weights for other programs: `python -m pb_jax.checkpoints --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pb_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error of the user."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "show":
            _show(options.folder)
        else:
            _export(options.folder, options.target, options.epoch, options.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    return 0


def _show(folder: Path) -> None:
    from pb_jax.training.compact import megabytes  # a second or two, so not at the top
    from pb_jax.training.export import best, listing

    found = listing(folder)
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


def _export(folder: Path, target: Path, epoch: int | str, force: bool) -> None:
    from pb_jax.training.export import export  # a second or two, so not at the top

    done = export(folder, target, epoch, force)
    print(f"{target}: epoch {done.epoch}, {done.weights:,} numbers in {done.arrays} arrays")
    if done.left_out:
        print(f"left out, as no floating-point numbers: {', '.join(done.left_out)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pb_jax.checkpoints",
        description=(
            "Look at the checkpoints of a run of train.py, and write weights for other programs. "
            "Both only read DIR: a run that is training there is not disturbed."
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser(
        "show",
        help="list a run's checkpoints",
        description=(
            "Print for each checkpoint its epoch, its form, the score by which the best is chosen, "
            "its bytes on the disk and its base. A full checkpoint stands alone; a delta holds "
            "what trains under the mask, and its base the frozen weights."
        ),
    )
    show.add_argument("folder", metavar="DIR", type=_path, help="the --workdir of train.py")
    export = commands.add_parser(
        "export",
        help="write full weights to a .safetensors file",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write parameters and batch statistics of one checkpoint to a .safetensors file, by\n"
            'their names in the model ("conv1.kernel", "norm1.mean"), in the shapes of training\n'
            "(convolutions: height, width, in, out; dense layers: in, out). Deltas are put\n"
            "together with their base. The file's metadata say model, dataset, epoch, score,\n"
            "share of frozen weights, and versions. The model's code is not needed."
        ),
        epilog=(
            "examples:\n"
            "  python -m pb_jax.checkpoints export runs/vgg19_pb vgg19.safetensors\n"
            "  python -m pb_jax.checkpoints export runs/vgg19_pb last.safetensors --epoch last\n"
            '  python -c "from safetensors.numpy import load_file; '
            "print(load_file('vgg19.safetensors').keys())\""
        ),
    )
    export.add_argument("folder", metavar="DIR", type=_path, help="the --workdir of train.py")
    export.add_argument("target", metavar="FILE.safetensors", type=_path, help="the file to write")
    export.add_argument(
        "--epoch",
        metavar="N|best|last",
        type=_epoch,
        default="best",
        help="which checkpoint, of those that `show` lists (default: best)",
    )
    export.add_argument("--force", action="store_true", help="replace a file that exists")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _epoch(text: str) -> int | str:
    if text in ("best", "last"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, best or last, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

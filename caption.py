"""Write captions for pictures, and show what the captioner looks at for each word.

usage: python caption.py --workdir DIR [--beam N] [--no-figure] IMAGE...

  python caption.py --workdir runs/captioner_pb holiday.jpg dog.png
      a line for each picture on standard output: its path, a colon and its caption; and
      runs/captioner_pb/figures/caption_holiday.png, caption_dog.png: each word with its attention
      over the picture (the paper's figure 4)
  python caption.py --workdir runs/captioner_pb --beam 1 --no-figure photos/*.jpg
      the likeliest word each time, and nothing written

  --workdir DIR   a finished run of train.py with a captioner, such as configs/captioner_pb.py or
                  configs/shapes_captioner_pb.py; the parameters of its best epoch are used
  IMAGE           a JPEG, PNG, WebP, GIF or BMP file of any size; it is squeezed to the square that
                  the encoder takes
  --beam N        hypotheses kept by the beam search; default: generation.beam of the run
  --weights FILE  of the encoder, where they are not where the run found them
  --no-figure     captions only
  --debug         show the stack trace of an error
  --help          this text

A file that is no picture is reported on standard error, and the others go on. The exit status is 0
where all pictures have a caption, 2 where an error was reported, 130 after Ctrl-C.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pb_jax import program
from pb_jax.errors import UserError
from pb_jax.files import read_json

if TYPE_CHECKING:
    import numpy as np

_MOST_BYTES = 200_000_000  # of a picture's file


class Described(NamedTuple):
    """A picture, put into words.

    Attributes:
        words: of the caption.
        alphas: float32 (words, h * w), what was looked at for each of them.
    """

    words: list[str]
    alphas: "np.ndarray"


class Describer:
    """A trained captioner.

    Args:
        workdir: of a finished run of train.py.
        beam: hypotheses kept; None: as the run did.
        weights: of the encoder, in place of those that the run names.

    Raises:
        UserError: the folder holds no such run, or a file of it is missing or damaged.
    """

    def __init__(
        self, workdir: Path, *, beam: int | None = None, weights: str | None = None
    ) -> None:
        import jax

        import models
        import train
        from pb_jax import training
        from pb_jax.data import Vocabulary
        from pb_jax.training.modules import functional

        config, best_epoch = _read_run(workdir)
        if weights is not None:
            config["encoder"]["weights"] = weights
        self._vocabulary = Vocabulary.load(workdir / training.VOCABULARY)
        encoder, make_model = train.captioner(config)
        apart = functional(make_model(len(self._vocabulary)))
        arrays = training.read_model(
            workdir / "checkpoints", best_epoch, apart.params, apart.model_state
        )
        search = training.Search(**config["generation"])
        if beam is not None:
            search = search._replace(beam=beam)
        self.image_size, self.grid = encoder.image_size, encoder.grid
        encode = models.encoders.compiled(encoder) if encoder.frozen else None

        @jax.jit
        def describe(arrays: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            tokens, alphas = training.captions_with_alphas(apart.merge(*arrays), inputs, search)
            return tokens[0], alphas[0]

        def described(image: "np.ndarray") -> tuple[jax.Array, jax.Array]:
            # Half precision, in which features are stored for training.
            inputs = image[None] if encode is None else encode(image[None]).astype("float16")
            return describe(arrays, inputs)

        self._described = described

    def __call__(self, image: "np.ndarray") -> Described:
        """Describe a picture.

        Args:
            image: uint8 (S, S, 3) with S = `image_size`.
        """
        import numpy as np

        tokens, alphas = map(np.asarray, self._described(image))
        words = self._vocabulary.decode(tokens).split()
        return Described(words, alphas[: len(words)])


def _read_run(workdir: Path) -> tuple[dict[str, Any], int]:
    """The configuration of a finished run with a captioner, and its best epoch."""
    from pb_jax import training

    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds no run of train.py: there is no config.json in it")
    try:
        config = training.resolve(read_json(workdir / "config.json"))
        name = config["model"]["name"]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{workdir / 'config.json'} is damaged ({error})") from error
    if name != training.CAPTIONER:
        raise UserError(
            f"{workdir} holds a run of {name}, which writes no captions; --workdir must be that of "
            "a captioner, such as configs/captioner_pb.py makes"
        )
    summary = training.finished(workdir, config["epochs"])
    if summary is None:
        raise UserError(
            f"the run in {workdir} is not finished; the command that started it resumes it"
        )
    return config, summary["best_epoch"]


def read_picture(path: Path) -> "np.ndarray":
    """Read a picture file, uint8 (H, W, 3).

    Raises:
        UserError: it cannot be read, or is no picture.
    """
    from pb_jax.data import pictures

    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than {_MOST_BYTES // 1_000_000} MB: no picture")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: what is wrong is said once, below
            return pictures.decode(content)
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def figure_paths(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Where the figure of each picture goes; pictures of one name get numbers.

    Example:
        >>> paths = figure_paths(Path("figures"), [Path("a/dog.jpg"), Path("b/dog.png")])
        >>> [path.name for path in paths]
        ['caption_dog.png', 'caption_dog_2.png']
    """
    paths: list[Path] = []
    for image in images:
        number = 1
        path = folder / f"caption_{image.stem}.png"
        while path in paths:
            number += 1
            path = folder / f"caption_{image.stem}_{number}.png"
        paths.append(path)
    return paths


# ----------------------------------------------------------------------------------------------
# The command line.
# ----------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\nSee python caption.py --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: with the program's name first, as `sys.argv`.

    Raises:
        UserError: with what is wrong.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--beam", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--no-figure", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    options = parser.parse_args(argv[1:])
    if options.beam is not None and not 1 <= options.beam <= 100:
        raise UserError(f"--beam must be 1 to 100, got {options.beam}")
    return options


def main(argv: Sequence[str]) -> int:
    """The program; returns its exit status."""
    if not argv[1:] or {"--help", "-h"} & set(argv[1:]):
        print(__doc__)
        return 0 if argv[1:] else 2
    return program.run(lambda: _main(argv), debug="--debug" in argv)


def _main(argv: Sequence[str]) -> int:
    options = parse(argv)
    describer = Describer(options.workdir, beam=options.beam, weights=options.weights)
    figures = figure_paths(options.workdir / "figures", options.images)
    return program.each(
        zip(options.images, figures, strict=True),
        lambda paths: _describe(describer, paths[0], None if options.no_figure else paths[1]),
        debug=options.debug,
    )


def _describe(describer: Describer, image: Path, figure: Path | None) -> None:
    from pb_jax.data import pictures

    picture = read_picture(image)
    words, alphas = describer(pictures.resize(picture, describer.image_size))
    print(f"{image}: {' '.join(words)}", flush=True)
    if figure is None:
        return
    from pb_jax.reports.captions import attention_figure

    try:
        figure.parent.mkdir(exist_ok=True)
        attention_figure(picture, words, alphas, describer.grid, figure)
    except OSError as error:
        raise UserError(f"cannot write {figure}: {error.strerror}") from error


if __name__ == "__main__":
    program.end(main(sys.argv))

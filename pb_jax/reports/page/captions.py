"""Captions of a page, and what was looked at for each of their words."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pb_jax.files import read_json
from pb_jax.reports.captions import GLOW, MOST_COVER
from pb_jax.reports.page.markup import Markup, element, picture
from pb_jax.reports.page.tables import NOTHING, table
from pb_jax.reports.run_folder import UNREADABLE, arrays, damaged

CAPTIONS, SAMPLES = "test_captions.json", "test_attention.npz"
_SHOWN = 12  # captions without a picture
_SIDE = 96  # of a picture, in its own units


class Sample(NamedTuple):
    """A picture and its caption.

    Attributes:
        name: of the picture.
        pixels: uint8 (H, W, 3).
        words: of the caption.
        alphas: (words, h, w), what was looked at for each of them.
    """

    name: str
    pixels: np.ndarray
    words: list[str]
    alphas: np.ndarray


def read_samples(workdir: Path) -> list[Sample]:
    """The samples that a captioner's run keeps; none where it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / SAMPLES
    if not path.exists():
        return []
    try:
        content = arrays(path)
        grid = tuple(map(int, content["grid"]))
        return [
            _sample(name, pixels, caption, alphas.reshape(-1, *grid))
            for name, pixels, caption, alphas in zip(
                *(content[key] for key in ("names", "pixels", "captions", "alphas")), strict=True
            )
        ]
    except KeyError as error:
        raise damaged(path, f"it lacks {error}") from error
    except UNREADABLE as error:
        raise damaged(path, error) from error


def _sample(name: object, pixels: np.ndarray, caption: object, alphas: np.ndarray) -> Sample:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels of a picture have shape {pixels.shape}, dtype {pixels.dtype}")
    words = str(caption).split()
    return Sample(str(name), pixels, words, alphas[: len(words)])


def read_captions(workdir: Path) -> dict[str, str]:
    """The captions of the test pictures, by the pictures' names; none where there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / CAPTIONS
    try:
        return {name: str(caption) for name, caption in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def attention(samples: Mapping[Markup, Sample], number: int) -> Markup:
    """A picture, and below it each run's caption word by word, glowing where it looked.

    Args:
        samples: of one picture, by the name of the run.
        number: of the picture, on this page.
    """
    first = next(iter(samples.values()))
    whole = f"picture{number}"
    shown = element(
        "svg",
        element(
            "image", id=whole, width=_SIDE, height=_SIDE, href=picture(_jpeg(first.pixels), "jpeg")
        ),
        viewBox=f"0 0 {_SIDE} {_SIDE}",
        role="img",
        aria_label=f"the picture {first.name}",
    )
    rows = [
        element(
            "div",
            element("p", run, ": ", element("q", " ".join(sample.words))),
            _words(sample, whole),
        )
        for run, sample in samples.items()
    ]
    head = element("figure", shown, element("figcaption", first.name), class_="picture")
    return element("section", head, *rows, class_="sample")


def _words(sample: Sample, whole: str) -> Markup:
    panels = [
        element("figure", _glowing(weights, whole, word), element("figcaption", word))
        for word, weights in zip(sample.words, sample.alphas, strict=True)
    ]
    return element("div", *panels, class_="words")


def _glowing(weights: np.ndarray, whole: str, word: str) -> Markup:
    """The picture in grey, and over it the glow, which the browser makes smooth."""
    return element(
        "svg",
        element("use", href=f"#{whole}", class_="grey"),
        element(
            "image",
            width=_SIDE,
            height=_SIDE,
            preserveAspectRatio="none",
            href=picture(_glow(weights), "png"),
        ),
        viewBox=f"0 0 {_SIDE} {_SIDE}",
        role="img",
        aria_label=f"where it looked for the word {word}",
    )


def _glow(weights: np.ndarray) -> bytes:
    """A PNG of one colour, as opaque as the weights are large, of the largest one."""
    light = np.nan_to_num(weights, nan=0.0).clip(0)
    light = light / max(float(light.max(initial=0)), 1e-12)
    pixels = np.empty((*light.shape, 4), np.uint8)
    pixels[..., :3] = GLOW
    pixels[..., 3] = np.rint(255 * MOST_COVER * light)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _jpeg(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def listed(captions: Mapping[Markup, Mapping[str, str]]) -> Markup:
    """The first captions of each run, without pictures."""
    names = list(dict.fromkeys(name for of_run in captions.values() for name in of_run))
    lines = [
        (name, [of_run.get(name, NOTHING) for of_run in captions.values()])
        for name in names[:_SHOWN]
    ]
    return table("picture", list(captions), lines)

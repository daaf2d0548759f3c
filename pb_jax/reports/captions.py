"""What captioners look at for each word, and how good their captions are."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pb_jax.checks import check_choice
from pb_jax.errors import UserError
from pb_jax.files import read_json
from pb_jax.reports import style
from pb_jax.reports.style import in_style, percent

_COLUMNS = 6
_MOST_PIXELS = 320  # of a picture's longer side; panels are smaller
GLOW = np.array([255.0, 190, 0])  # RGB, where attention is greatest
MOST_COVER = 0.7  # how much of the picture it hides there
_DIM = 0.6  # brightness of the grey picture below
_ORDERS = (1, 2, 3, 4)
_COLOURS = (style.DATA, style.DATA_2, style.DATA_3, style.FROZEN, style.QUIET)
_HATCHES = ("", "//", "..", "xx")


def attention_figure(
    image: np.ndarray,
    words: Sequence[str],
    alphas: np.ndarray,
    grid: tuple[int, int],
    path: str | os.PathLike[str],
) -> Path:
    """Draw a picture once for each word of its caption, glowing where the captioner looked for it.

    Args:
        image: uint8 (H, W, 3).
        words: T words; may be none.
        alphas: float (T, h * w), weights of the positions, rows of the grid one after the other.
        grid: (h, w), which covers the picture evenly.
        path: of the PNG file to be written.

    Returns:
        `path`.

    Raises:
        ValueError: shapes that do not fit together.

    Source:
        Figure 4 of the paper.
    """
    return style.save(draw_attention(image, words, alphas, grid), Path(path))


def bleu_figure(
    runs: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str], split: str = "test"
) -> Path:
    """Draw the BLEU scores of finished captioners as bars.

    Args:
        runs: folders of runs by the name that they are to have in the figure.
        path: of the PNG file to be written.
        split: whose scores: "test", or "val", of the best epoch.

    Returns:
        `path`.

    Raises:
        UserError: a run is not finished, or is none of a captioner.

    Source:
        Figure 5 of the paper.
    """
    check_choice("split", split, ("test", "val"))
    scores = {name: _read_scores(Path(folder), split) for name, folder in runs.items()}
    return style.save(draw_bleu(scores, split), Path(path))


@in_style
def draw_attention(
    image: np.ndarray, words: Sequence[str], alphas: np.ndarray, grid: tuple[int, int]
) -> Figure:
    """`attention_figure` before it is saved."""
    alphas = np.asarray(alphas, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if alphas.shape != (len(words), grid[0] * grid[1]):
        raise ValueError(
            f"alphas must be (words, positions) ({len(words)}, {grid[0] * grid[1]}), "
            f"got {alphas.shape}"
        )
    picture = _small(image)
    columns = min(_COLUMNS, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    width = style.WIDTH / columns
    panel = width * np.clip(picture.shape[0] / picture.shape[1], 0.4, 1.6) + 0.25
    title = textwrap.fill(" ".join(words) or "(no words)", 88)
    note = "yellow: where it looked for the word; each picture on its own scale"
    figure = style.new_figure(0.7 + 0.2 * title.count("\n") + rows * panel, _literal(title))
    figure.supxlabel(note, fontsize=9, color=style.QUIET)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(picture)
    panels[0].set_title("the picture", color=style.QUIET)
    for axes, word, weights in zip(panels[1:], words, alphas, strict=False):
        axes.imshow(_lit(picture, weights.reshape(grid)))
        axes.set_title(_literal(word))
    return figure


@in_style
def draw_bleu(scores: Mapping[str, Mapping[str, float]], split: str) -> Figure:
    """`bleu_figure` before it is saved.

    Args:
        scores: of each run, `bleu1` to `bleu4` from 0 to 1, and its `frozen_fraction`.
        split: "test" or "val".
    """
    of = {"test": "the test pictures", "val": "the validation pictures, of the best epoch"}
    figure = style.new_figure(4.4, "BLEU of generated captions")
    axes = figure.subplots()
    width = 0.8 / max(len(scores), 1)
    for number, (name, run) in enumerate(scores.items()):
        frozen = run["frozen_fraction"]
        share = f"{percent(frozen)} of the weights frozen" if frozen else "nothing frozen"
        places = np.arange(len(_ORDERS)) + width * (number - (len(scores) - 1) / 2)
        bars = axes.bar(
            places,
            [run[f"bleu{order}"] for order in _ORDERS],
            0.92 * width,
            color=_COLOURS[number % len(_COLOURS)],
            hatch=_HATCHES[number // len(_COLOURS) % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=_literal(f"{name} ({share})"),
        )
        few = len(scores) <= 5
        axes.bar_label(
            bars, fmt="%.3f", fontsize=8, padding=2, rotation=0 if few else 90, color=style.QUIET
        )
    _bleu_axes(axes)
    axes.set_ylabel(f"corpus BLEU on\n{of[split]}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _bleu_axes(axes: Axes) -> None:
    axes.set_xticks(range(len(_ORDERS)), [f"BLEU-{order}" for order in _ORDERS])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, min(1.08 * axes.get_ylim()[1], 1.08))


def _small(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _lit(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture in grey, in each place glowing as the weight there, of the largest one."""
    from PIL import Image

    height, width = picture.shape[:2]
    smooth = Image.fromarray(weights).resize((width, height), Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(smooth), 0, None)[:, :, None]
    light = light / max(float(light.max()), 1e-12)
    cover = MOST_COVER * light
    return ((1 - cover) * _DIM * picture.mean(2, keepdims=True) + cover * GLOW).astype(np.uint8)


def _literal(text: str) -> str:
    """`text`, without matplotlib taking what is between two dollars as mathematics."""
    return text.replace("$", r"\$")


def _read_scores(workdir: Path, split: str) -> dict[str, float]:
    path = workdir / "summary.json"
    try:
        summary = read_json(path)
        found = {f"bleu{order}": float(summary[f"{split}_bleu{order}"]) for order in _ORDERS}
        return {**found, "frozen_fraction": float(summary["frozen_fraction"])}
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {path}; {workdir} is no run of train.py, or not finished: the same "
            "command as before resumes it"
        ) from error
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; is {workdir} the run of a captioner?") from error
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); no figure can be drawn from it") from error

"""Rendered pictures of coloured shapes in relations, with true captions; no files needed.

A scene is one shape in a place of the picture, or two in a relation to each other. No scene occurs
twice, so none is in two splits. Only integers are calculated with: pixels and captions are the same
on every machine.
"""

from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from pb_jax.data.captions import CAPTIONS_PER_IMAGE, CaptionSplit
from pb_jax.data.pictures import ArrayImages

SIZE = 48
"""Height and width of a picture."""

SPLITS = {"train": 3000, "validation": 300, "test": 300}
"""Pictures in each split."""

KINDS = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 170, 60),
    "blue": (50, 90, 220),
    "yellow": (235, 205, 50),
    "purple": (160, 70, 190),
    "white": (240, 240, 240),
}
DIAMETERS = {"small": (9, 10, 11), "large": (17, 18, 19)}
"""In pixels; one of them is drawn."""

PLACES = {
    "in the middle": (0, 0),
    "in the top left corner": (-1, -1),
    "in the top right corner": (1, -1),
    "in the bottom left corner": (-1, 1),
    "in the bottom right corner": (1, 1),
}
"""Where a single shape may be: the signs of its offset (x, y) from the middle."""

T = TypeVar("T")

_SEED = 0
_FINE = 4  # rows and columns of samples in a pixel
_HOLLOW = ("circle", "square", "ring")  # what another shape may be inside of


class Shape(NamedTuple):
    """What is drawn, and called "a SIZE COLOUR KIND"."""

    size: str
    colour: str
    kind: str


class Scene(NamedTuple):
    """What a picture shows.

    Attributes:
        relation: a key of `PLACES` (of `first` alone), "left of", "above" or "inside".
        first: the shape that is there, or left of, above or inside `second`.
        second: the other shape; None where `first` is alone.
    """

    relation: str
    first: Shape
    second: Shape | None


_PLACED = (
    "there is a {a} {place}",
    "a {a} is {place}",
    "a {a} {place}",
    "{place} there is a {a}",
    "{place} is a {a}",
    "the picture shows a {a} {place}",
)
_RELATED = {
    "left of": (
        "a {a} is to the left of a {b}",
        "a {a} is left of a {b}",
        "a {a} to the left of a {b}",
        "there is a {a} to the left of a {b}",
        "a {b} is to the right of a {a}",
        "a {b} to the right of a {a}",
        "there is a {b} to the right of a {a}",
    ),
    "above": (
        "a {a} is above a {b}",
        "a {a} above a {b}",
        "there is a {a} above a {b}",
        "the picture shows a {a} above a {b}",
        "a {b} is below a {a}",
        "a {b} below a {a}",
        "there is a {b} below a {a}",
    ),
    "inside": (
        "a {a} is inside a {b}",
        "a {a} inside a {b}",
        "there is a {a} inside a {b}",
        "a {b} is around a {a}",
        "a {b} around a {a}",
        "there is a {b} with a {a} inside",
    ),
}
_SIZE_WORDS = {  # drawn by these shares
    "large": (*["large"] * 9, *["big"] * 2, ""),
    "small": (*["small"] * 9, *["little"] * 2, ""),
}


def read() -> dict[str, CaptionSplit]:
    """Render every picture and write its captions.

    Returns:
        {"train", "validation", "test"}: `SPLITS` pictures of `SIZE` x `SIZE` pixels each.

    Example:
        >>> read()["test"].captions[0][0]
        'a large green triangle is left of a small blue ring'
    """
    draw = Draw(_SEED)
    splits = {}
    for split, scenes in scenes_of_splits().items():
        names = tuple(f"{split}-{index:04d}" for index in range(len(scenes)))
        pixels = np.stack([render(scene, draw) for scene in scenes])
        captions = tuple(tuple(describe(scene, draw)) for scene in scenes)
        splits[split] = CaptionSplit(ArrayImages(names, pixels), captions)
    return splits


def scenes_of_splits() -> dict[str, tuple[Scene, ...]]:
    """What the pictures of each split show, in order.

    Of all scenes that there can be, those of one shape and those of one inside another are few and
    all chosen; the rest is drawn.
    """
    draw = Draw(_SEED)
    common = [scene for scene in all_scenes() if scene.relation in ("left of", "above")]
    rare = [scene for scene in all_scenes() if scene.relation not in ("left of", "above")]
    chosen = rare + draw.sample(common, sum(SPLITS.values()) - len(rare))
    scenes = iter(draw.sample(chosen, len(chosen)))
    return {split: tuple(islice(scenes, size)) for split, size in SPLITS.items()}


def all_scenes() -> list[Scene]:
    """Every scene that there can be."""
    shapes = [
        Shape(size, colour, kind) for size in DIAMETERS for colour in COLOURS for kind in KINDS
    ]
    pairs = [(a, b) for a in shapes for b in shapes if a != b]
    return [
        *(Scene(place, shape, None) for place in PLACES for shape in shapes),
        *(Scene(relation, a, b) for relation in ("left of", "above") for a, b in pairs),
        *(
            Scene("inside", a, b)
            for a, b in pairs
            if (a.size, b.size) == ("small", "large") and a.colour != b.colour and b.kind in _HOLLOW
        ),
    ]


def describe(scene: Scene, draw: "Draw") -> list[str]:
    """Draw `CAPTIONS_PER_IMAGE` true captions of `scene`, all different."""
    templates = _PLACED if scene.second is None else _RELATED[scene.relation]
    return [
        template.format(
            place=scene.relation,
            a=_phrase(scene.first, draw),
            b="" if scene.second is None else _phrase(scene.second, draw),
        )
        for template in draw.sample(templates, CAPTIONS_PER_IMAGE)
    ]


def render(scene: Scene, draw: "Draw") -> np.ndarray:
    """Draw a picture of `scene`; exact places, diameters and shades are chance.

    Returns:
        uint8 (`SIZE`, `SIZE`, 3).
    """
    noise = draw.below_many(13, SIZE * SIZE * 3).reshape(SIZE, SIZE, 3)
    pixels = noise + (20 + draw.below(50))
    shapes = [scene.first] if scene.second is None else [scene.first, scene.second]
    diameters = [draw.choice(DIAMETERS[shape.size]) for shape in shapes]
    if scene.relation == "inside":
        diameters[1] += 8  # room for the other
    corners = _corners(scene.relation, diameters, draw)
    # The second first: what is inside lies on top.
    for shape, diameter, (x, y) in reversed(list(zip(shapes, diameters, corners, strict=True))):
        shade = np.array(COLOURS[shape.colour]) + draw.below_many(25, 3) - 12
        part = pixels[y : y + diameter, x : x + diameter]
        cover = _coverage(shape.kind, diameter)[..., np.newaxis]
        full = _FINE**2
        part[:] = (part * (full - cover) + np.clip(shade, 0, 255) * cover + full // 2) // full
    return pixels.astype(np.uint8)


class Draw:
    """Chance that is the same on every machine and with every numpy.

    Raw output of a bit generator is the one stream that numpy promises to keep.

    Args:
        seed: 0 or more.
    """

    def __init__(self, seed: int):
        self._generator = np.random.PCG64(seed)

    def below(self, bound: int) -> int:
        """A number in 0 to `bound - 1`."""
        return int(self._generator.random_raw() % bound)

    def below_many(self, bound: int, count: int) -> np.ndarray:
        """`count` such numbers, int64."""
        return (self._generator.random_raw(count) % np.uint64(bound)).astype(np.int64)

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` of `items`, in any order, none twice."""
        order = np.argsort(self._generator.random_raw(len(items)), kind="stable")
        return [items[index] for index in order[:count]]


def _phrase(shape: Shape, draw: Draw) -> str:
    words = draw.choice(_SIZE_WORDS[shape.size]), shape.colour, shape.kind
    return " ".join(word for word in words if word)


def _corners(relation: str, diameters: list[int], draw: Draw) -> list[tuple[int, int]]:
    """Top left corners (x, y) of the shapes; every shape stays off the picture's border."""
    middle = [(SIZE - diameter) // 2 for diameter in diameters]
    if relation in PLACES:
        towards = PLACES[relation]
        reach = middle[0] - 1  # as far as a shape can go
        x, y = (
            middle[0] + (sign * (reach - draw.below(4)) if sign else draw.below(7) - 3)
            for sign in towards
        )
        return [(x, y)]
    if relation == "inside":
        shift_x, shift_y = (draw.below(2 * middle[1] - 1) - middle[1] + 1 for _ in range(2))
        return [(start + shift_x, start + shift_y) for start in middle]
    gap = 2 + draw.below(5)
    length = sum(diameters) + gap
    start = 1 + draw.below(SIZE - 1 - length)
    along = [start, start + diameters[0] + gap]
    room = min(middle) - 1  # of the larger
    common = draw.below(2 * room + 1) - room
    across = [
        min(max(centre + common + draw.below(5) - 2, 1), SIZE - 1 - diameter)
        for centre, diameter in zip(middle, diameters, strict=True)
    ]
    pairs = zip(along, across, strict=True)
    return [(x, y) if relation == "left of" else (y, x) for x, y in pairs]


@cache
def _coverage(kind: str, diameter: int) -> np.ndarray:
    """How many of the _FINE x _FINE samples of each pixel belong to the shape."""
    radius = diameter * _FINE
    axis = 2 * np.arange(diameter * _FINE) + 1 - radius  # in units of half a sample
    x, y = axis[np.newaxis, :], axis[:, np.newaxis]
    square_distance = x**2 + y**2
    inside = {
        "circle": square_distance < radius**2,
        "square": (abs(x) < radius) & (abs(y) < radius),
        "triangle": 2 * abs(x) <= y + radius,
        "cross": (3 * abs(x) < radius) | (3 * abs(y) < radius),
        "ring": (square_distance < radius**2) & (25 * square_distance >= 9 * radius**2),
    }[kind]
    return inside.reshape(diameter, _FINE, diameter, _FINE).sum((1, 3))

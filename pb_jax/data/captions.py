"""Pictures with captions: what the rest of the project sees, and the rule that makes words.

The rule (`normalize_caption`): Unicode compatibility form NFKC, lower case; apostrophes and hyphens
between two letters or digits are dropped ("T-shirt" is "tshirt", "man's" "mans"); every other
character that is no letter and no digit ends a word and is dropped, so punctuation is gone.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pb_jax.data.pictures import ImageSource

CAPTIONS_PER_IMAGE = 5
"""Every picture has so many captions."""

_INSIDE_WORD = re.compile(r"(?<=[^\W_])['\u2019\u2010\u2011-](?=[^\W_])")
_WORD = re.compile(r"[^\W_]+")


class CaptionSplit(NamedTuple):
    """The examples of one split, in their fixed order.

    Attributes:
        images: the pictures, N of them, read when they are asked for.
        captions: N tuples of `CAPTIONS_PER_IMAGE` captions, as `normalize_caption` leaves them.
    """

    images: ImageSource
    captions: tuple[tuple[str, ...], ...]

    def first(self, limit: int | None) -> "CaptionSplit":
        """The first `limit` pictures (None: all) and their captions."""
        return CaptionSplit(self.images.first(limit), self.captions[:limit])


class Example(NamedTuple):
    """A picture and its captions as the original files have them.

    Attributes:
        name: of the picture's file.
        sha256: of the encoded picture, as hexadecimal digits.
        captions: one or more, as they were written.
    """

    name: str
    sha256: str
    captions: tuple[str, ...]


class CaptionDataset(NamedTuple):
    """Pictures with captions.

    Attributes:
        name: its name in `pb_jax.data.CAPTION_DATASETS`.
        train: the training split.
        validation: the split by which training is judged and stopped.
        test: the split that is looked at once, at the end.
        notes: a sentence, with counts, on each thing that was irregular in the original files.
    """

    name: str
    train: CaptionSplit
    validation: CaptionSplit
    test: CaptionSplit
    notes: tuple[str, ...]


def normalize_caption(text: str) -> str:
    """Bring a caption into words of letters and digits, lower case, with single spaces between.

    The module's documentation has the exact rule.

    Args:
        text: any text.

    Returns:
        The words; "" where there is none.

    Example:
        >>> normalize_caption("A man's black-and-white dog , no. 2 , jumps !")
        'a mans blackandwhite dog no 2 jumps'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(_WORD.findall(_INSIDE_WORD.sub("", folded)))


def exactly_five(name: str, captions: Sequence[str]) -> tuple[str, ...]:
    """Take the first five captions; where there are fewer, repeat some, drawn by the name.

    Args:
        name: of the picture. The same name and captions draw the same on every machine.
        captions: at least one.

    Returns:
        `CAPTIONS_PER_IMAGE` captions: all of them, in order, then those repeated.

    Example:
        >>> exactly_five("1.jpg", ["a dog", "a brown dog"])
        ('a dog', 'a brown dog', 'a dog', 'a brown dog', 'a brown dog')
    """
    if not captions:
        raise ValueError("captions must hold at least one caption, got none")
    chosen = tuple(captions[:CAPTIONS_PER_IMAGE])
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    draws = np.random.PCG64(seed).random_raw(CAPTIONS_PER_IMAGE - len(chosen))
    return (*chosen, *(chosen[int(draw % len(chosen))] for draw in draws))

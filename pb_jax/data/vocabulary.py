"""The words that a captioner knows, and captions as rows of their numbers."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pb_jax.checks import check_number
from pb_jax.errors import UserError
from pb_jax.files import read_json, write_json

PAD = 0
"""Fills a row behind its end; never predicted, never counted."""

START = 1
"""The first token of every caption."""

END = 2
"""The last one."""

UNKNOWN = 3
"""Stands for every word that the vocabulary lacks."""

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
"""How the four are written; no word of a normalised caption looks like that."""

_FORMAT = 1


class Vocabulary:
    """Words and their numbers; the numbers 0 to 3 are `PAD`, `START`, `END` and `UNKNOWN`.

    Args:
        words: different words without white space; the first has number 4.

    Raises:
        ValueError: a word is empty, occurs twice, holds white space, or is one of `SPECIAL`.

    Example:
        >>> vocabulary = Vocabulary.build(["a red dog", "a dog runs"], min_count=2)
        >>> len(vocabulary), vocabulary.words
        (6, ('a', 'dog'))
        >>> vocabulary.encode(["a dog", "a red dog"])
        array([[1, 4, 5, 2, 0],
               [1, 4, 3, 5, 2]], dtype=int32)
        >>> vocabulary.decode([1, 4, 3, 5, 2, 0])
        'a <unk> dog'
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        for word in self.words:
            if not isinstance(word, str) or word.split() != [word] or word in SPECIAL:
                raise ValueError(f"words must be single words and none of {SPECIAL}, got {word!r}")
        self._numbers = {word: number for number, word in enumerate(self.words, len(SPECIAL))}
        if len(self._numbers) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"words must differ from each other, got {twice!r} twice")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 5) -> "Vocabulary":
        """Collect the words of `captions`, the frequent ones first, ties by alphabet.

        Args:
            captions: normalised captions, those of the training split only.
            min_count: how often a word must occur to be known.
        """
        check_number("min_count", min_count, whole=True, least=1)
        if isinstance(captions, str):
            raise TypeError(f"captions must be several captions, got the text {captions!r}")
        counts = Counter(word for caption in captions for word in _words(caption))
        known = [word for word, count in counts.items() if count >= min_count]
        return cls(sorted(known, key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Turn captions into rows of numbers, as long as the longest of them needs.

        Args:
            captions: N normalised captions.

        Returns:
            int32 (N, L): `START`, the words, `END`, then `PAD`.
        """
        if isinstance(captions, str):
            raise TypeError(f"captions must be several captions, got the text {captions!r}")
        rows = [
            [START, *(self._numbers.get(word, UNKNOWN) for word in _words(caption)), END]
            for caption in captions
        ]
        encoded = np.full((len(rows), max(map(len, rows), default=2)), PAD, np.int32)
        for index, row in enumerate(rows):
            encoded[index, : len(row)] = row
        return encoded

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Turn one row of numbers into a caption: up to `END`, without `START` and `PAD`.

        Raises:
            ValueError: a number is none of this vocabulary's.
        """
        words = []
        for number in map(int, ids):
            if number == END:
                break
            if not 0 <= number < len(self):
                raise ValueError(f"ids must be 0 to {len(self) - 1}, got {number}")
            if number not in (PAD, START):
                words.append(self[number])
        return " ".join(words)

    def __getitem__(self, number: int) -> str:
        """The word, or the name of the special token, that has this number."""
        if not 0 <= number < len(self):
            raise IndexError(f"number must be 0 to {len(self) - 1}, got {number}")
        special = len(SPECIAL)
        return SPECIAL[number] if number < special else self.words[number - special]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        write_json(path, {"format": _FORMAT, "words": list(self.words)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read a file that `save` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        path = Path(path)
        try:
            content = read_json(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: there is no such file; training writes it") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a vocabulary ({error})") from error
        if content.get("format") != _FORMAT:
            raise UserError(f"{path}: is no vocabulary of format {_FORMAT}")
        words = content.get("words")
        if not isinstance(words, list):
            raise UserError(f"{path}: is a damaged vocabulary (it has no list of words)")
        try:
            return cls(words)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: is a damaged vocabulary ({error})") from error


def _words(caption: str) -> list[str]:
    if not isinstance(caption, str):
        raise TypeError(f"captions must be texts, got {caption!r}")
    return caption.split()

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pb_jax.data import CaptionSplit, normalize_caption
from pb_jax.data.captions import exactly_five
from pb_jax.data.pictures import ArrayImages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A child in a pink dress is climbing up .", "a child in a pink dress is climbing up"),
        ("  Two   dogs\trun\n", "two dogs run"),
        ('A man \'s T-shirt , " no. 5 "', "a man s tshirt no 5"),
        ("the man's tri-colored dog", "the mans tricolored dog"),
        ("the man\u2019s dog", "the mans dog"),
        ("dog,cat;bird/fish", "dog cat bird fish"),
        ("a - b -c d- --e", "a b c d e"),
        ("snake_case <start> #7", "snake case start 7"),
        ("CAFÉ cafe\u0301", "café café"),
        ("\ufb01sh", "fish"),
        ("..!?", ""),
        ("", ""),
    ],
)
def test_normalised(text, expected):
    assert normalize_caption(text) == expected


@given(st.text())
def test_what_is_normalised_holds_words_of_letters_and_digits(text):
    normal = normalize_caption(text)
    assert " ".join(normal.split()) == normal
    assert all(word.isalnum() for word in normal.split(" ") if normal)
    assert normalize_caption(normal) == normal


@given(st.text(st.characters(categories=["P", "S", "Z", "C"])))
def test_punctuation_alone_is_nothing(text):
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalnum()]
    assert bool(normalize_caption(text)) == bool(letters)  # some symbols are made of letters: ™


@given(st.lists(st.text(min_size=1), min_size=1, max_size=9), st.text())
def test_exactly_five(captions, name):
    five = exactly_five(name, captions)
    assert len(five) == 5
    assert list(five[: len(captions)]) == captions[:5]
    assert set(five) <= set(captions)
    assert five == exactly_five(name, captions)


def test_repetition_is_drawn_by_the_name_and_fair():
    counts = np.zeros(2)
    for index in range(500):
        rest = exactly_five(f"{index}.jpg", ["x", "y"])[2:]
        counts += [rest.count("x"), rest.count("y")]
    assert counts.sum() == 1500
    assert abs(counts[0] - 750) < 100  # five standard deviations
    with pytest.raises(ValueError, match="at least one"):
        exactly_five("a.jpg", [])


def test_the_first_of_a_split():
    images = ArrayImages(["a", "b", "c"], np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3))
    split = CaptionSplit(images, (("one",) * 5, ("two",) * 5, ("three",) * 5))
    assert split.first(2).captions == split.captions[:2]
    assert split.first(2).images.names == ("a", "b")
    assert split.first(None).captions == split.captions

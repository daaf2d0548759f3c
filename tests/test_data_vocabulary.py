import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pb_jax.data import Vocabulary, vocabulary
from pb_jax.data.vocabulary import END, PAD, SPECIAL, START, UNKNOWN
from pb_jax.errors import UserError

WORDS = st.text("abc", min_size=1, max_size=2)
CAPTIONS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=12)


@given(CAPTIONS, st.integers(1, 4))
def test_build_keeps_the_frequent_words_in_order(captions, min_count):
    words = Vocabulary.build(captions, min_count).words
    counts = Counter(" ".join(captions).split())
    assert set(words) == {word for word in counts if counts[word] >= min_count}
    assert list(words) == sorted(words, key=lambda word: (-counts[word], word))
    assert Vocabulary.build(iter(reversed(captions)), min_count).words == words


@given(CAPTIONS)
def test_known_captions_come_back(captions):
    known = Vocabulary.build(captions, 1)
    rows = known.encode(captions)
    assert rows.dtype == np.int32
    assert rows.shape == (len(captions), 2 + max((len(c.split()) for c in captions), default=0))
    assert [known.decode(row) for row in rows] == captions
    assert (rows[:, :1] == START).all()
    lengths = np.array([len(caption.split()) for caption in captions], np.int64)
    after = np.arange(rows.shape[1]) - (lengths[:, None] + 1)
    assert (rows[after == 0] == END).all()
    assert (rows[after > 0] == PAD).all()
    assert (rows[after < 0] != PAD).all()


def test_the_constants_and_what_is_unknown():
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    known = Vocabulary(["dog", "red"])
    assert len(known) == 6
    assert known.encode(["red cat dog", ""]).tolist() == [[1, 5, 3, 4, 2], [1, 2, 0, 0, 0]]
    assert known.decode([1, 5, 3, 4, 2, 99]) == "red <unk> dog"
    assert known.decode(np.array([4, 0, 4], np.int32)) == "dog dog"
    assert [known[number] for number in range(6)] == [*SPECIAL, "dog", "red"]
    assert Vocabulary([]).encode(["a"]).tolist() == [[1, 3, 2]]
    assert Vocabulary([]).encode([]).shape == (0, 2)


def test_min_count_is_five_unless_said_otherwise():
    assert Vocabulary.build(["a"] * 4 + ["b"] * 5).words == ("b",)


@given(st.lists(st.text(min_size=1).filter(lambda word: word.split() == [word]), unique=True))
def test_save_and_load(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("v") / "vocabulary.json"
    known = Vocabulary([word for word in words if word not in SPECIAL])
    known.save(path)
    assert Vocabulary.load(path) == known
    assert hash(Vocabulary.load(path)) == hash(known)


def test_an_order_is_part_of_it():
    assert Vocabulary(["a", "b"]) != Vocabulary(["b", "a"])
    assert Vocabulary(["a"]) != ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a vocabulary"),
        (b"\xff\xfe", "cannot be read as a vocabulary"),
        (b"[" * 100_000, "cannot be read as a vocabulary"),
        (b"[]", "cannot be read as a vocabulary"),
        (b'{"format": 2, "words": []}', "is no vocabulary of format 1"),
        (b'{"format": 1}', "no list of words"),
        (b'{"format": 1, "words": "dog"}', "no list of words"),
        (b'{"format": 1, "words": ["dog", "dog"]}', "'dog' twice"),
        (b'{"format": 1, "words": ["a dog"]}', "got 'a dog'"),
        (b'{"format": 1, "words": ["<end>"]}', "got '<end>'"),
        (b'{"format": 1, "words": [["dog"]]}', r"got \['dog'\]"),
        (b'{"format": 1, "words": [null]}', "got None"),
    ],
    ids=range(12),
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_every_cut_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "vocabulary.json"
    Vocabulary(["dog", "cat"]).save(path)
    content = path.read_text().rstrip()
    for end in range(len(content)):
        path.write_text(content[:end])
        with pytest.raises(UserError):
            Vocabulary.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        Vocabulary.load(tmp_path / "vocabulary.json")
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary.build("a dog"), TypeError, "several captions"),
        (lambda: Vocabulary.build([("a dog",)]), TypeError, "captions must be texts"),
        (lambda: Vocabulary.build(["a"], 0), ValueError, "min_count must be"),
        (lambda: Vocabulary.build(["a"], 1.5), TypeError, "min_count must be"),
        (lambda: Vocabulary(["a"]).encode("a dog"), TypeError, "several captions"),
        (lambda: Vocabulary(["a"]).encode([3]), TypeError, "captions must be texts"),
        (lambda: Vocabulary(["a"]).decode([5]), ValueError, "ids must be 0 to 4, got 5"),
        (lambda: Vocabulary(["a"]).decode([-1]), ValueError, "got -1"),
        (lambda: Vocabulary(["a"])[5], IndexError, "number must be 0 to 4, got 5"),
    ],
    ids=range(9),
)
def test_wrong_use(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    Vocabulary(["dog"]).save(path)
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Vocabulary(["cat"]).save(path)
    assert Vocabulary.load(path).words == ("dog",)
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]


def test_special_names_cannot_come_out_of_normalised_text():
    from pb_jax.data import normalize_caption

    assert all(normalize_caption(name) != name for name in vocabulary.SPECIAL)

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pb_jax.training.bleu import corpus_bleu

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4")


def by_nltk(hypotheses, references):
    from nltk.translate import bleu_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where a precision is 0
        scores: Any = [
            bleu_score.corpus_bleu(
                [[caption.split() for caption in captions] for captions in references],
                [caption.split() for caption in hypotheses],
                weights=[1 / order] * order,
            )
            for order in range(1, 5)
        ]
    # For a precision of 0 it takes the least float there is.
    return [0.0 if score < 1e-50 else float(score) for score in scores]


def by_counting(hypotheses, references):
    """Papineni's formula, with lists."""

    def ngrams(caption, order):
        words = caption.split()
        return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]

    length = closest = 0
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        size = len(hypothesis.split())
        lengths = [len(caption.split()) for caption in captions]
        length += size
        closest += min(lengths, key=lambda other: (abs(other - size), other))
    penalty = 1.0 if length >= closest else math.exp(1 - closest / length) if length else 0.0
    precisions, scores = [], []
    for order in range(1, 5):
        right = count = 0
        for hypothesis, captions in zip(hypotheses, references, strict=True):
            found = ngrams(hypothesis, order)
            count += len(found)
            for ngram in set(found):
                allowed = max(ngrams(caption, order).count(ngram) for caption in captions)
                right += min(found.count(ngram), allowed)
        precisions.append(right / count if count else 0.0)
        scores.append(penalty * math.prod(precisions) ** (1 / order))
    return scores


def corpus(seed, images=30, shortest=1):
    """Captions that have words in common, as captions of one picture have."""
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(12)]

    def caption(base):
        kept = [word if rng.random() < 0.8 else rng.choice(words) for word in base]
        return " ".join(kept[: rng.integers(shortest, len(kept) + 1)])

    hypotheses, references = [], []
    for _ in range(images):
        base = rng.choice(words, rng.integers(4, 12))
        hypotheses.append(caption(base))
        references.append([caption(base) for _ in range(rng.integers(1, 6))])
    return hypotheses, references


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100_000), images=st.integers(1, 20))
def test_against_nltk(seed, images):
    # It counts an n-gram too many for each hypothesis that has none: none is that short.
    hypotheses, references = corpus(seed, images, shortest=4)
    got = corpus_bleu(hypotheses, references)
    assert tuple(got) == NAMES
    wanted = by_nltk(hypotheses, references)
    np.testing.assert_allclose(list(got.values()), wanted, rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100_000), images=st.integers(1, 20))
def test_against_the_formula(seed, images):
    hypotheses, references = corpus(seed, images, shortest=0)
    got = list(corpus_bleu(hypotheses, references).values())
    np.testing.assert_allclose(got, by_counting(hypotheses, references), rtol=1e-9, atol=1e-12)


def test_by_hand():
    got = corpus_bleu(
        ["the the the cat", "a dog runs on grass"],
        [["the cat is here", "the the cat"], ["a dog runs over grass"]],
    )
    # 1-grams: the clipped at 2 and cat: 3 of 4; 4 of 5. 2-grams: the-the, the-cat: 2 of 3; 2 of 4.
    # 3-grams: the-the-cat: 1 of 2; 1 of 3. 4-grams: 0 of 1; 0 of 2. Lengths: 9, references' 9.
    precisions = [7 / 9, 4 / 7, 2 / 5, 0]
    for order in (1, 2, 3):
        wanted = math.prod(precisions[:order]) ** (1 / order)
        assert got[f"bleu{order}"] == pytest.approx(wanted)
    assert got["bleu4"] == 0


def test_the_true_captions_have_1():
    captions = ["a red circle above a blue square", "two dogs run on the grass"]
    references = [[caption, "something else entirely"] for caption in captions]
    assert corpus_bleu(captions, references) == pytest.approx(dict.fromkeys(NAMES, 1.0))


def test_short_ones_are_penalised():
    got = corpus_bleu(["a b c d"], [["a b c d e f"]])
    assert got == pytest.approx(dict.fromkeys(NAMES, math.exp(1 - 6 / 4)))


def test_of_equally_close_references_the_shorter_counts():
    assert corpus_bleu(["a b c d e"], [["a b c d", "a b c d e f"]])["bleu1"] == 1.0


def test_empty_captions():
    assert corpus_bleu(["", ""], [["a b"], ["c"]]) == dict.fromkeys(NAMES, 0.0)
    got = corpus_bleu(["", "a b c d"], [["a"], ["a b c d"]])
    assert got == pytest.approx(dict.fromkeys(NAMES, math.exp(1 - 5 / 4)))


def test_captions_too_short_for_4_grams():
    got = corpus_bleu(["a b", "a"], [["a b"], ["a"]])
    assert got == {"bleu1": 1.0, "bleu2": 1.0, "bleu3": 0.0, "bleu4": 0.0}


def test_words_are_what_spaces_separate():
    assert corpus_bleu(["don't stop-now <unk>"], [["don't stop-now <unk>"]])["bleu3"] == 1.0
    assert corpus_bleu(["A dog ."], [["a dog ."]])["bleu1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [([], []), (["a"], [["a"], ["b"]]), (["a"], [[]]), (["a"], ["a"]), ("a", [["a"]])],
)
def test_what_cannot_be_scored(hypotheses, references):
    with pytest.raises(ValueError, match=r"hypotheses|references"):
        corpus_bleu(hypotheses, references)

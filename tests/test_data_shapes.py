import hashlib
import re
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from pb_jax.data import load_captions, normalize_caption, shapes
from pb_jax.data.shapes import Scene, Shape

CONTENT = shapes.read()
SCENES = shapes.scenes_of_splits()
SPLITS = ("train", "validation", "test")
NOUN = r"a (?:(small|little|large|big) )?(\w+) (\w+)"
PLAIN_SIZES = {"little": "small", "big": "large", None: None}


def says(caption: str) -> tuple[str, list[tuple]]:
    """The relation and the shapes, the one that has the relation first: a parser of English."""
    nouns = [
        (PLAIN_SIZES.get(size or None, size), colour, kind)
        for size, colour, kind in re.findall(NOUN, caption)
    ]
    if place := re.search(r"in the (middle|(?:top|bottom) (?:left|right) corner)", caption):
        return place[0], nouns
    words = re.search(r"left of|right of|above|below|inside|around", caption)
    assert words, caption
    relation = words[0]
    if "with a" in caption:  # "a ring with a cross inside"
        return relation, nouns[::-1]
    inverse = {"right of": "left of", "below": "above", "around": "inside"}
    return (inverse[relation], nouns[::-1]) if relation in inverse else (relation, nouns)


def fits(said: tuple, shape: Shape) -> bool:
    return said[0] in (None, "", shape.size) and said[1:] == (shape.colour, shape.kind)


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_is_true_and_no_two_are_the_same(split):
    for scene, captions in zip(SCENES[split], CONTENT[split].captions, strict=True):
        assert len(set(captions)) == 5
        for caption in captions:
            assert normalize_caption(caption) == caption
            relation, nouns = says(caption)
            expected = [shape for shape in scene[1:] if shape is not None]
            assert relation == scene.relation
            assert len(nouns) == len(expected)
            assert all(map(fits, nouns, expected)), (caption, scene)


def pixels_of(image: np.ndarray, colour: str) -> np.ndarray:
    """Rows and columns of the pixels that are all `colour`, not mixed with what is around."""
    distance = ((image.astype(int) - shapes.COLOURS[colour]) ** 2).sum(-1)
    return np.argwhere(distance <= 3 * 12**2)


def test_pictures_show_what_the_captions_say():
    """Where two shapes differ in colour, their pixels are in the relation, and of the size."""
    seen = Counter()
    images = CONTENT["train"].images
    for index, (relation, first, second) in enumerate(SCENES["train"][:1200]):
        image = images.read([index])[0]
        places = pixels_of(image, first.colour)
        height, width = np.ptp(places, 0) + 1
        if second is None:
            row, column = places.mean(0)
            where = {
                "in the middle": abs(row - 23.5) < 6 and abs(column - 23.5) < 6,
                "in the top left corner": row < 20 and column < 20,
                "in the top right corner": row < 20 and column > 27,
                "in the bottom left corner": row > 27 and column < 20,
                "in the bottom right corner": row > 27 and column > 27,
            }
            assert where[relation]
        elif first.colour != second.colour:
            others = pixels_of(image, second.colour)
            lo, hi = places.min(0), places.max(0)
            other_lo, other_hi = others.min(0), others.max(0)
            if relation == "inside":
                assert (other_lo < lo).all()
                assert (hi < other_hi).all()
            elif relation == "left of":
                assert hi[1] < other_lo[1]
                assert np.argmax(np.abs(places.mean(0) - others.mean(0))) == 1
            else:
                assert hi[0] < other_lo[0]
                assert np.argmax(np.abs(places.mean(0) - others.mean(0))) == 0
        else:
            continue
        assert (max(height, width) > 13) == (first.size == "large"), (index, height, width)
        assert places.min() >= 1  # off the border
        assert places.max() <= 46
        seen[relation] += 1
    assert min(seen[relation] for relation in ("left of", "above", "inside")) > 100


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_kinds_look_different(kind):
    def area(name):
        picture = shapes._coverage(name, 18)
        return picture.sum() / 16 / 18**2

    expected = {
        "circle": np.pi / 4,
        "square": 1,
        "triangle": 1 / 2,
        "cross": 5 / 9,
        "ring": np.pi / 4 * (1 - 0.36),
    }
    assert area(kind) == pytest.approx(expected[kind], abs=0.02)
    cover = shapes._coverage(kind, 18)
    np.testing.assert_array_equal(cover, cover[:, ::-1])  # symmetrical


def test_no_scene_occurs_twice():
    every = [scene for split in SPLITS for scene in SCENES[split]]
    assert len(every) == len(set(every)) == 3600
    assert [len(SCENES[split]) for split in SPLITS] == [3000, 300, 300]
    assert set(every) <= set(shapes.all_scenes())
    relations = {split: {scene.relation for scene in SCENES[split]} for split in SPLITS}
    assert relations["train"] == relations["test"] == {*shapes.PLACES, "left of", "above", "inside"}


def test_all_scenes_are_different_and_two_shapes_are_never_the_same():
    every = shapes.all_scenes()
    assert len(every) == len(set(every)) == 5 * 60 + 2 * 60 * 59 + 30 * 3 * 5
    assert all(scene.first != scene.second for scene in every)
    assert Scene("left of", Shape("small", "red", "ring"), Shape("large", "blue", "cross")) in every


# Of what was published: the pictures that a trained captioner of any release has seen.
DIGESTS = {
    "train": "90f21481d00b4725e499cc7d35e212a6fdffb5595c26507141337a48b508a058",
    "validation": "b07bf53389f9ca41431f77f5a05262670daa05cf5d3805a2e5c708f597196b7e",
    "test": "a0530a5702f498c189692fb4782cc410ece3ce0fc77482dd973a5d6c5644ebe7",
}


def test_it_is_the_same_on_every_machine():
    assert {split: CONTENT[split].images.digest for split in SPLITS} == DIGESTS
    texts = "\n".join(c for split in SPLITS for five in CONTENT[split].captions for c in five)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "54f6376c2285852b"
    again = shapes.read()
    for split in SPLITS:
        assert again[split].captions == CONTENT[split].captions
        assert again[split].images.digest == CONTENT[split].images.digest


def test_one_more_true_caption_scores_well_against_the_five():
    """The ceiling of a captioner that sees everything but cannot know which words were drawn."""
    draw = shapes.Draw(1)
    split = CONTENT["test"]
    sixth = [draw.choice(shapes.describe(scene, draw)) for scene in SCENES["test"]]
    references = [list(column) for column in zip(*split.captions, strict=True)]
    score = sacrebleu.corpus_bleu(sixth, references, tokenize="none", force=True).score
    assert 85 < score < 95  # far above 60, and not by there being nothing to choose
    blind = sacrebleu.corpus_bleu(sixth[1:] + sixth[:1], references, tokenize="none", force=True)
    assert blind.score < 45  # captions of other pictures


def test_the_words_are_few_and_frequent():
    counts = Counter(" ".join(c for five in CONTENT["train"].captions for c in five).split())
    assert len(counts) == 35
    assert min(counts.values()) > 100
    assert max(len(c.split()) for five in CONTENT["train"].captions for c in five) == 14


def test_load_captions():
    dataset = load_captions("shapes", limit_train=7, limit_eval=3, progress=False)
    assert (dataset.name, dataset.notes) == ("shapes", ())
    assert [len(split.captions) for split in dataset[1:4]] == [7, 3, 3]
    assert dataset.test.captions == CONTENT["test"].captions[:3]
    assert dataset.train.images.names[:2] == ("train-0000", "train-0001")
    np.testing.assert_array_equal(
        dataset.train.images.read(range(7)), CONTENT["train"].images.read(range(7))
    )


def test_chance():
    draw = shapes.Draw(3)
    assert {draw.below(3) for _ in range(50)} == {0, 1, 2}
    assert sorted(draw.sample("abcde", 5)) == list("abcde")
    assert len(draw.sample("abcde", 2)) == 2
    many = draw.below_many(10, 10_000)
    assert many.dtype == np.int64
    assert np.abs(np.bincount(many, minlength=10) - 1000).max() < 150

"""The real Flickr8k, where PB_JAX_DATA names the folder that holds flickr8k/."""

import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pb_jax.data import Vocabulary, load_captions
from pb_jax.data.captions import CaptionDataset

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def source(data_folder) -> Path:
    if not (data_folder / "flickr8k").is_dir():
        pytest.skip("PB_JAX_DATA holds no flickr8k")
    return data_folder / "flickr8k"


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory) -> CaptionDataset:
    data_dir = tmp_path_factory.mktemp("tfds")
    prepared = load_captions("flickr8k", data_dir=data_dir, source_dir=source.parent)
    again = load_captions("flickr8k", data_dir=data_dir, source_dir=source, progress=False)
    assert again.train.captions == prepared.train.captions
    assert again.train.images.digest == prepared.train.images.digest
    return again


def test_the_official_splits(source, dataset):
    for split, name, size in (
        ("train", "train", 6000),
        ("validation", "dev", 1000),
        ("test", "test", 1000),
    ):
        names = (source / "Flickr8k_text" / f"Flickr_8k.{name}Images.txt").read_text().split()
        part = getattr(dataset, split)
        assert len(names) == size
        assert list(part.images.names) == names
        assert len(part.captions) == size


def test_what_is_irregular_in_the_original_is_noted(dataset):
    assert dataset.notes == (
        "1 captioned name without an image file (2258277193_586949ec62.jpg.1): 5 captions left out",
        "91 files in the image folder on none of the lists (1155138244_859fd6e079.jpg, "
        "1468103286_96a6e07029.jpg, 1479857177_9d4a6f38fd.jpg, ...): left out",
    )


def test_captions_are_those_of_the_file(source, dataset):
    texts = defaultdict(list)
    for line in (source / "Flickr8k_text" / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        name, text = line.split("\t")
        letters = "".join(c for c in text.lower() if c.isalnum())
        texts[name.partition("#")[0]].append(letters)
    for part in dataset[1:4]:
        for name, five in zip(part.images.names, part.captions, strict=True):
            assert [caption.replace(" ", "") for caption in five] == texts[name]
    assert dataset.train.captions[0][1] == "black dog chasing brown dog through snow"


def test_pictures_are_those_of_the_files(source, dataset):
    chosen = [0, 1234, 999, 5999]
    read = dataset.train.images.read(chosen, 100)
    for index, pixels in zip(chosen, read, strict=True):
        path = source / "Flicker8k_Dataset" / dataset.train.images.names[index]
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        expected = np.asarray(image.resize((100, 100), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pixels, expected)


def test_the_vocabulary_of_the_training_captions(dataset):
    captions = [caption for five in dataset.train.captions for caption in five]
    vocabulary = Vocabulary.build(captions)
    counts = Counter(" ".join(captions).split())
    assert len(vocabulary) == 4 + sum(count >= 5 for count in counts.values()) == 2540
    assert vocabulary.words[:3] == ("a", "in", "the")
    rows = vocabulary.encode(captions)
    assert rows.shape == (30_000, 38)
    unknown = np.mean(rows[rows > 2] == 3)
    assert 0.005 < unknown < 0.03
    shown = [vocabulary.decode(row).split() for row in rows[::97]]
    for words, caption in zip(shown, captions[::97], strict=True):
        pairs = zip(words, caption.split(), strict=True)
        assert all(word == other or word == "<unk>" for word, other in pairs)

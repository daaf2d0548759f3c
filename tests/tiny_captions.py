"""A captioner and pictures with captions that train in a moment."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import models
import pb_jax
from pb_jax.data import Vocabulary
from pb_jax.training import (
    Captioning,
    Freezing,
    Pictures,
    Plateau,
    Samples,
    Search,
    fit,
    optimizers,
)

ANIMALS, VERBS = ("dog", "cat", "bird"), ("runs", "sits in the grass")
BATCH = 10


def tiny_pictures(count: int, seed: int) -> Pictures:
    """Features (2, 3, 8) that tell the animal and the verb, and two captions each."""
    rng = np.random.default_rng(seed)
    animals, verbs = rng.integers(0, 3, count), rng.integers(0, 2, count)
    features = rng.normal(0, 0.1, (count, 2, 3, 8)).astype(np.float16)
    features[np.arange(count), 0, animals, animals] += 2
    features[np.arange(count), 1, :, 3 + verbs] += 2
    captions = [
        (f"a {ANIMALS[a]} {VERBS[v]}", f"the {ANIMALS[a]} {VERBS[v]}")
        for a, v in zip(animals, verbs, strict=True)
    ]
    return Pictures([f"{i}.jpg" for i in range(count)], features, captions)


def tiny_captioning(**changes: Any) -> Captioning:
    train = changes.pop("train", tiny_pictures(60, 0))
    validation, test = tiny_pictures(7, 1), tiny_pictures(5, 2)
    words = (caption for captions in train.captions for caption in captions)
    vocabulary = Vocabulary.build(words, min_count=1)
    sizes = {"channels": 8, "hidden": 16, "embedding": 8, "attention": 8}
    sizes["dropout"] = changes.pop("dropout", 0.1)
    model = models.Captioner(len(vocabulary), **sizes, rngs=nnx.Rngs(0))
    samples = Samples(np.full((2, 20, 30, 3), 9, np.uint8), grid=(2, 3))
    options = {"search": Search(beam=2, max_length=7), "samples": samples} | changes
    return Captioning(model, train, validation, test, vocabulary, BATCH, **options)


def tiny_plateau(**changes: Any) -> Plateau:
    return Plateau(**({"learning_rate": 0.03, "decay": 0.5, "patience": 1, "stop": None} | changes))


def tiny_captioning_fit(workdir: Path, epochs: int, **changes: Any) -> dict[str, Any]:
    workdir.mkdir(exist_ok=True)
    task = tiny_captioning()
    plateau = changes.pop("learning_rate", tiny_plateau())
    freezing = Freezing(pb_jax.quantile(0.5), task.steps_per_epoch, alpha=0.03)
    options = {"freezing": freezing, "seed": 3, "stream": io.StringIO()} | changes
    return fit(
        task,
        optimizers.adjustable("adam", 0.03),
        workdir,
        epochs=epochs,
        learning_rate=plateau,
        **options,
    )

"""Captions of pictures: cross-entropy under teacher forcing, BLEU of generated captions.

Loss and accuracy (`train_`, `val_`) are of the next word given the true words before it. The BLEU
scores are of captions that are generated from the picture alone, by beam search.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pb_jax.data.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from pb_jax.errors import UserError
from pb_jax.files import replacing, write_json
from pb_jax.training.batches import (
    evaluation_order,
    few_lengths,
    padded_lengths,
    training_order_by_length,
)
from pb_jax.training.bleu import corpus_bleu
from pb_jax.training.classification import cross_entropy
from pb_jax.training.generation import beam_search
from pb_jax.training.modules import Arrays, functional
from pb_jax.training.task import EvalTotals, Order, Outcome, Task

VOCABULARY = "vocabulary.json"
"""The file in a run's folder that holds its words."""

SAMPLES = "test_attention.npz"
"""The file in a run's folder that holds some test pictures, and what was looked at in them."""

_GENERATED_TOGETHER = 50


class Pictures(NamedTuple):
    """A split: what the model sees, and what people wrote.

    Attributes:
        names: of the N pictures.
        inputs: (N, ...) arrays that the model takes, possibly a memory map.
        captions: the normalised captions of each picture.
    """

    names: Sequence[str]
    inputs: np.ndarray
    captions: Sequence[Sequence[str]]


class Captions(NamedTuple):
    """A split on the device.

    Attributes:
        inputs: (N, ...), of the pictures.
        tokens: int32 (M, L), of all their captions, from START to END, then PAD.
        picture: int32 (M,), of each caption.
    """

    inputs: jax.Array
    tokens: jax.Array
    picture: jax.Array


class Batch(NamedTuple):
    """Examples that are trained on or evaluated together.

    Attributes:
        inputs: (N, ...), of the captions' pictures.
        tokens: int32 (N, length + 1), of the captions.
    """

    inputs: jax.Array
    tokens: jax.Array


class Samples(NamedTuple):
    """The first pictures of the test split as people see them, to be kept with their attention.

    Attributes:
        pixels: uint8 (K, H, W, 3).
        grid: (h, w) of the positions that the captioner looks at.
    """

    pixels: np.ndarray
    grid: tuple[int, int]


class Search(NamedTuple):
    """How captions are generated: `pb_jax.training.generation.beam_search` says what it means."""

    beam: int = 3
    max_length: int = 30
    length_penalty: float = 0.0


class Captioning(Task):
    """A captioner, its pictures and their captions.

    After each epoch it is judged on the validation split; the test split is used once, when the run
    ends, with the parameters of the epoch that was best there.

    Args:
        model: inputs and tokens to logits and alphas, with `start` and `step` for generation (see
            `models.Captioner`); its arrays are consumed.
        train: each caption of it is an example.
        validation: what epochs are judged by.
        test: what `summary.json` is to report besides.
        vocabulary: of the training captions.
        batch_size: captions a step.
        regularisation: strength of the doubly stochastic regularisation: of the mean over pictures
            and positions of (1 - sum over the words of alpha)^2 (Xu et al. 2015, equation 14).
        search: how captions are generated.
        samples: what `SAMPLES` is to show when the run ends; None: it is not written.

    Raises:
        UserError: fewer captions than a batch holds.
    """

    score: ClassVar[str] = "val_bleu4"
    scores: ClassVar[tuple[str, ...]] = ("val_bleu1", "val_bleu2", "val_bleu3", "val_bleu4")

    def __init__(
        self,
        model: nnx.Module,
        train: Pictures,
        validation: Pictures,
        test: Pictures,
        vocabulary: Vocabulary,
        batch_size: int,
        *,
        regularisation: float = 1.0,
        search: Search | None = None,
        samples: Samples | None = None,
    ) -> None:
        self._apply, self.params, self.model_state, self._merge = functional(model)
        self._train, self._validation, self._test = train, validation, test
        self._vocabulary = vocabulary
        self._regularisation = regularisation
        self._search = search or Search()
        self._samples = samples
        self._tokens = vocabulary.encode(_all(train))
        self._validation_tokens = vocabulary.encode(_all(validation))
        # The number of words to predict, the end token among them.
        self._sizes = (self._tokens != PAD).sum(1) - 1
        self.examples, self.batch_size = len(self._tokens), batch_size
        if batch_size > self.examples:
            raise UserError(
                f"batch_size={batch_size} is more than the {self.examples} training captions; "
                "take a smaller batch or more data"
            )
        self.lengths = few_lengths(self._sizes)
        self._generate = jax.jit(self._generated)

    def train_data(self) -> Captions:
        """See `Task`."""
        return _on_device(self._train, self._tokens)

    def evaluation_data(self) -> Captions:
        """See `Task`."""
        return _on_device(self._validation, self._validation_tokens)

    def order(self, seed: int, epoch: int) -> Order:
        """See `Task`."""
        return Order(
            *training_order_by_length(seed, epoch, self._sizes, self.batch_size, self.lengths)
        )

    def evaluation_order(self) -> Order:
        """See `Task`."""
        sizes = (self._validation_tokens != PAD).sum(1) - 1
        order = evaluation_order(len(sizes), self.batch_size)
        rows = np.where(order >= 0, np.argsort(sizes, kind="stable")[order], -1).astype(np.int32)
        longest = np.where(rows >= 0, sizes[rows], 0).max(1)
        return Order(rows, padded_lengths(longest, few_lengths(sizes)))

    def gather(self, data: Captions, rows: jax.Array, length: int) -> Batch:
        """See `Task`."""
        tokens = data.tokens[rows, : length + 1]
        return Batch(data.inputs[data.picture[rows]], tokens)

    def read(self, rows: np.ndarray, length: int, *, evaluation: bool = False) -> Batch:
        """See `Task`."""
        pictures, tokens = self._train, self._tokens
        if evaluation:
            pictures, tokens = self._validation, self._validation_tokens
        return Batch(pictures.inputs[_picture(pictures)[rows]], tokens[rows, : length + 1])  # pyright: ignore[reportArgumentType]

    def loss(self, params: Arrays, model_state: Arrays, batch: Batch) -> tuple[jax.Array, Outcome]:
        """See `Task`."""
        (logits, alphas), targets, model_state = self._forced(
            params, model_state, batch, train=True
        )
        counts = targets != PAD
        losses = jnp.where(counts, cross_entropy(logits, targets), 0.0)
        looked = jnp.sum(jnp.where(counts[:, :, None], alphas, 0.0), 1)
        loss = jnp.sum(losses) / jnp.sum(counts)
        loss += self._regularisation * jnp.mean(jnp.square(1.0 - looked))
        right = counts & (jnp.argmax(logits, -1) == targets)
        correct, counted = (jnp.sum(x, dtype=jnp.int32) for x in (right, counts))
        return loss, Outcome(model_state, correct, counted)

    def evaluate(
        self,
        params: Arrays,
        model_state: Arrays,
        batch: Batch,
        counts: jax.Array,
    ) -> EvalTotals:
        """See `Task`; the loss is without the regularisation."""
        (logits, _), targets, _ = self._forced(params, model_state, batch, train=False)
        counted = (targets != PAD) & counts[:, None]
        losses = jnp.where(counted, cross_entropy(logits, targets), 0.0)
        right = counted & (jnp.argmax(logits, -1) == targets)
        sums = (jnp.sum(x, dtype=jnp.int32) for x in (right, counted))
        return EvalTotals(jnp.sum(losses), *sums)

    def judge(self, params: Arrays, model_state: Arrays) -> dict[str, float]:
        """BLEU-1 to BLEU-4 of captions generated for the validation split."""
        captions = self.generate(params, model_state, self._validation.inputs)
        scores = corpus_bleu(captions, self._validation.captions)
        return {f"val_{name}": value for name, value in scores.items()}

    def finish(self, best: Callable[[], tuple[Arrays, Arrays]], workdir: Path) -> dict[str, Any]:
        """BLEU-1 to BLEU-4 of the test split; writes `test_captions.json` and `SAMPLES`."""
        arrays = best()
        captions = self.generate(*arrays, self._test.inputs)
        written = dict(zip(self._test.names, captions, strict=True))
        write_json(workdir / "test_captions.json", written)
        if self._samples is not None:
            self._write_samples(self._samples, arrays, workdir / SAMPLES)
        scores = corpus_bleu(captions, self._test.captions)
        return {f"test_{name}": value for name, value in scores.items()}

    def generate(self, params: Arrays, model_state: Arrays, inputs: np.ndarray) -> list[str]:
        """The best caption that beam search finds for each picture.

        Args:
            params: of the model.
            model_state: of the model.
            inputs: (N, ...), as the model takes them.
        """
        captions = []
        for rows in evaluation_order(len(inputs), min(_GENERATED_TOGETHER, len(inputs))):
            tokens = self._generate(params, model_state, inputs[np.maximum(rows, 0)])
            captions += [self._vocabulary.decode(row) for row in np.asarray(tokens)[rows >= 0]]
        return captions

    def _write_samples(self, samples: Samples, arrays: tuple[Arrays, Arrays], path: Path) -> None:
        count = len(samples.pixels)
        look = jax.jit(
            lambda arrays, x: captions_with_alphas(self._merge(*arrays), x, self._search)
        )
        tokens, alphas = map(np.asarray, look(arrays, self._test.inputs[:count]))
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self._test.names[:count]),
                pixels=samples.pixels,
                grid=np.array(samples.grid),
                captions=np.array([self._vocabulary.decode(row) for row in tokens]),
                alphas=alphas.astype(np.float32),
            )

    def _generated(self, params: Arrays, model_state: Arrays, inputs: jax.Array) -> jax.Array:
        return best_captions(self._merge(params, model_state), inputs, self._search)

    def _forced(
        self, params: Arrays, model_state: Arrays, batch: Batch, *, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array, Arrays]:
        """Logits and alphas under teacher forcing, what was to be predicted, the new state."""
        outputs, model_state = self._apply(
            params, model_state, batch.inputs, batch.tokens[:, :-1], train=train
        )
        return outputs, batch.tokens[:, 1:], model_state


def best_captions(model: Any, inputs: jax.Array, search: Search) -> jax.Array:
    """Tokens of the best caption of each picture, int32 (N, max_length).

    Args:
        model: a captioner in evaluation mode.
        inputs: (N, ...), as it takes them.
        search: how to look for it.
    """
    found = beam_search(
        model.start(inputs),
        model.step,
        beam=search.beam,
        max_length=search.max_length,
        length_penalty=search.length_penalty,
        start=START,
        end=END,
        pad=PAD,
        never=(UNKNOWN,),
    )
    return found.tokens[:, 0]


def captions_with_alphas(
    model: Any, inputs: jax.Array, search: Search
) -> tuple[jax.Array, jax.Array]:
    """The best caption of each picture, and what was looked at for each of its words.

    Args:
        model: a captioner in evaluation mode.
        inputs: (N, ...), as it takes them.
        search: how to look for captions.

    Returns:
        int32 (N, max_length) tokens, and (N, max_length, positions) alphas; those behind the end
        token mean nothing.
    """
    tokens = best_captions(model, inputs, search)
    before = jnp.concatenate([jnp.full((len(tokens), 1), START), tokens[:, :-1]], 1)
    return tokens, model(inputs, before)[1]


def _all(pictures: Pictures) -> list[str]:
    return [caption for captions in pictures.captions for caption in captions]


def _picture(pictures: Pictures) -> np.ndarray:
    """Of each caption, int32."""
    numbers = [len(captions) for captions in pictures.captions]
    return np.repeat(np.arange(len(numbers), dtype=np.int32), numbers)


def _on_device(pictures: Pictures, tokens: np.ndarray) -> Captions:
    return Captions(
        jnp.asarray(pictures.inputs), jnp.asarray(tokens), jnp.asarray(_picture(pictures))
    )

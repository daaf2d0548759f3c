"""A captioner that looks at a part of the picture for every word it writes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models import attention_lstm
from models.attention_lstm import Carry, Memory, Weights
from models.convolution import materialised
from models.layers import dense, uniform
from pb_jax.checks import check_number


class DecoderState(NamedTuple):
    """What the captioner knows between two words; the leading axis of all is N.

    Attributes:
        memory: the picture: it stays as it is from word to word.
        carry: the LSTM's state.
    """

    memory: Memory
    carry: Carry


class Captioner(nnx.Module):
    """Soft attention and an LSTM that write a caption of a grid of features, word by word.

    Before each word an additive attention weighs the positions of the grid by alphas, which add up
    to 1. The weighted mean of their features, times a gate that the hidden state sets for each
    channel, and the word before go into the LSTM; its hidden state, behind dropout, gives the
    logits of the next word. The first state comes from the mean feature.

    The doubly stochastic regularisation of the paper cited below is left to the loss, which knows
    the lengths: strength * mean over images and positions of (1 - sum over the words of alpha)^2,
    where alphas of padding do not count.

    Args:
        vocabulary_size: V, words and special tokens.
        channels: C, of the features.
        encoder: a module from images to features (N, h, w, C), trained along; None: the inputs are
            features.
        hidden: size of the LSTM.
        embedding: size of the words' vectors.
        attention: size of the attention's hidden layer.
        dropout: share of the hidden state that is dropped before the logits, in training mode. The
            masks of all words are drawn together.
        rngs: source of the initial parameters, and of dropout (stream `dropout`).
        dtype: float32 or bfloat16, in which matrix products are computed; parameters, the LSTM's
            state, alphas and logits are float32.
        precision: of matrix products, as in `jax.lax.Precision`.

    Raises:
        ValueError: a size or `dropout` is not allowed.

    Source:
        Xu et al. 2015, "Show, Attend and Tell", with PyTorch's initialisation; the captioner of
        section 4.2 of the paper.

    Example:
        >>> model = Captioner(100, channels=16, hidden=8, rngs=nnx.Rngs(0))
        >>> words = jnp.array([[1, 5, 6], [1, 7, 2]])
        >>> logits, alphas = model(jnp.ones((2, 7, 7, 16)), words)
        >>> logits.shape, alphas.shape
        ((2, 3, 100), (2, 3, 49))
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        channels: int,
        encoder: Callable[[jax.Array], jax.Array] | None = None,
        hidden: int = 512,
        embedding: int = 512,
        attention: int = 512,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        precision: Any = None,
    ) -> None:
        sizes = {"vocabulary_size": vocabulary_size, "channels": channels, "hidden": hidden}
        sizes |= {"embedding": embedding, "attention": attention}
        for name, size in sizes.items():
            check_number(name, size, whole=True, least=1)
        check_number("dropout", dropout, least=0, below=1)
        self.vocabulary_size, self.channels = vocabulary_size, channels
        self.dtype, self.precision = dtype, precision
        options: dict[str, Any] = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.encoder = encoder
        self.embedding = nnx.Embed(
            vocabulary_size, embedding, embedding_init=_small, dtype=dtype, rngs=rngs
        )
        self.initial_hidden = dense(channels, hidden, **options)
        self.initial_cell = dense(channels, hidden, **options)
        self.attention_features = dense(channels, attention, **options)
        self.attention_hidden = _kernel(hidden, attention, hidden, rngs)
        self.attention_score = _kernel(attention, 1, attention, rngs)
        self.gate = dense(hidden, channels, **options)
        self.lstm_words = nnx.Linear(
            embedding,
            4 * hidden,
            kernel_init=uniform(hidden),
            bias_init=uniform(hidden),
            **options,
        )
        self.lstm_context = _kernel(channels, 4 * hidden, hidden, rngs)
        self.lstm_hidden = _kernel(hidden, 4 * hidden, hidden, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.output = dense(hidden, vocabulary_size, **options)

    def __call__(self, inputs: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of the words that follow each of the given ones (teacher forcing).

        Args:
            inputs: features (N, h, w, C) of any float dtype; where there is an encoder, what it
                takes.
            tokens: (N, T) int32, beginning with the start token.

        Returns:
            Logits, float32 (N, T, V), and alphas, float32 (N, T, P) with P = h * w, rows of the
            grid one after the other. Position t saw tokens 0 to t.

        Raises:
            ValueError: a shape or dtype is not as above.
        """
        memory, carry = self.start(inputs)
        n = memory.features.shape[0]
        if tokens.ndim != 2 or len(tokens) != n or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"Captioner: expected tokens ({n}, T), integers; found {tokens.dtype} of shape "
                f"{tokens.shape}"
            )
        words = self._words(tokens.T)
        unrolled: Any = attention_lstm.unroll(self._weights(), memory, carry, words, self.precision)
        hiddens, alphas = unrolled
        return self._logits(jnp.swapaxes(hiddens, 0, 1)), jnp.swapaxes(alphas, 0, 1)

    def start(self, inputs: jax.Array) -> DecoderState:
        """The state before the first word, which is the start token.

        Args:
            inputs: as above.
        """
        features = jnp.asarray(inputs) if self.encoder is None else self.encoder(inputs)
        if (
            features.ndim != 4
            or features.shape[3] != self.channels
            or not jnp.issubdtype(features.dtype, jnp.floating)
        ):
            raise ValueError(
                f"Captioner: expected features (N, h, w, channels {self.channels}), float; found "
                f"{features.dtype} of shape {features.shape}"
            )
        features = features.reshape(features.shape[0], -1, self.channels).astype(self.dtype)
        features = materialised(features)  # or XLA:CPU converts them for each use
        mean = jnp.mean(features, 1, dtype=jnp.float32)
        carry = Carry(
            self.initial_hidden(mean).astype(jnp.float32),
            self.initial_cell(mean).astype(jnp.float32),
        )
        projected = self.attention_features(features).astype(jnp.float32)
        return DecoderState(Memory(features, projected), carry)

    def step(
        self, state: DecoderState, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array, DecoderState]:
        """Take in a word of each caption.

        Args:
            state: before the word.
            tokens: (N,) int32.

        Returns:
            Logits of the next word, float32 (N, V); alphas, float32 (N, P); the new state.
        """
        carry, alphas = attention_lstm.step(
            self._weights(), state.memory, state.carry, self._words(tokens), self.precision
        )
        return self._logits(carry.hidden), alphas, state._replace(carry=carry)

    def _words(self, tokens: jax.Array) -> jax.Array:
        return self.lstm_words(self.embedding(tokens)).astype(jnp.float32)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        return self.output(self.dropout(hidden)).astype(jnp.float32)

    def _weights(self) -> Weights:
        assert self.gate.bias is not None
        kernels = (self.attention_hidden, self.gate, self.lstm_hidden)
        from_hidden = jnp.concatenate([layer.kernel[...] for layer in kernels], 1)
        return Weights(
            score=self.attention_score.kernel[...][:, 0],
            from_hidden=from_hidden.astype(self.dtype),
            gate_bias=self.gate.bias[...],
            from_context=self.lstm_context.kernel[...].astype(self.dtype),
        )


def _small(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


def _kernel(inputs: int, outputs: int, fan_in: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=uniform(fan_in), rngs=rngs)

"""Beam search: likely sequences of any model that goes word by word, for a whole batch at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.checks import check_number

Step = Callable[[Any, jax.Array], tuple[Any, ...]]


class Hypotheses(NamedTuple):
    """What a search has found, the best first.

    Attributes:
        tokens: int32 (N, beam, max_length): without the start token, with the end token, then
            padding. Without an end token: cut at the length limit.
        scores: float32 (N, beam). Where there are fewer sequences than beams, the rest have score
            -inf and only padding.
    """

    tokens: jax.Array
    scores: jax.Array


class _Beams(NamedTuple):
    length: jax.Array  # () int32, tokens so far
    tokens: jax.Array  # (N, beam, max_length)
    last: jax.Array  # (N, beam)
    sums: jax.Array  # (N, beam), of log-probabilities; -inf: no hypothesis
    lengths: jax.Array  # (N, beam)
    ended: jax.Array  # (N, beam)
    changing: list[jax.Array]  # state, (N, beam, ...) each


def beam_search(
    start_state: Any,
    step: Step,
    *,
    beam: int,
    max_length: int,
    start: int,
    end: int,
    pad: int,
    length_penalty: float = 0.0,
    never: Sequence[int] = (),
) -> Hypotheses:
    """Search for the sequences of highest score; greedy where `beam` is 1.

    A sequence's score is the sum of its tokens' log-probabilities, the end token's included; with a
    length penalty p > 0 it is divided by (number of tokens) ** p. The `beam` best hypotheses of an
    example are kept after every token. Those that have ended stay among them for as long as nothing
    scores better; the search is over once all have ended, or at the length limit, where those that
    have not ended count as they are. No two hypotheses of an example are alike.

    Pure; call it under `jax.jit`. Leaves of the state that `step` returns untouched, such as the
    features of a picture, are neither copied for each beam nor reordered.

    Args:
        start_state: any pytree of arrays with N as their leading axis.
        step: from such a state and tokens (N,) to logits (N, V), anything else, and, last, the new
            state, of the same structure, shapes and dtypes.
        beam: hypotheses kept for each example.
        max_length: most tokens of a sequence, its end token included.
        start: token that every sequence begins with; never generated.
        end: token that ends one.
        pad: token behind the end; never generated.
        length_penalty: 0: none; 1: the mean log-probability. Lets longer sequences win.
        never: further tokens not to be generated.

    Raises:
        TypeError: `beam`, `max_length` or `length_penalty` is no number.
        ValueError: it is out of bounds, a token is none of the model's, the end token is one of
            those never generated, or `start_state` is empty.

    Example:
        >>> after = jnp.log(jnp.array([[0, 0, 1, 0], [0, 0, .6, .4], [0, 0, 1, 0], [0, 0, .5, .5]]))
        >>> def step(state, tokens):
        ...     return after[tokens], state
        >>> found = beam_search(jnp.zeros(1), step, beam=2, max_length=3, start=1, end=2, pad=0)
        >>> found.tokens[0].tolist(), [f"{p:.2f}" for p in jnp.exp(found.scores[0])]
        ([[2, 0, 0], [3, 2, 0]], ['0.60', '0.20'])
    """
    check_number("beam", beam, whole=True, least=1)
    check_number("max_length", max_length, whole=True, least=1)
    check_number("length_penalty", length_penalty, least=0)
    forbidden = [pad, start, *never]
    if end in forbidden:
        raise ValueError(f"end must be none of the tokens never generated, {forbidden}, got {end}")
    leaves, structure = jax.tree.flatten(start_state)
    if not leaves:
        raise ValueError("start_state must hold at least one array, got none")
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    n = leaves[0].shape[0]
    changes = _changes(step, leaves, structure)
    constant = [leaf for leaf, changing in zip(leaves, changes, strict=True) if not changing]
    axes = [1 if changing else None for changing in changes]

    def advance(changing: list[jax.Array], tokens: jax.Array):
        """`step` for all beams: log-probabilities (N, beam, V) and the changed leaves."""

        def one_beam(leaves: list[jax.Array], tokens: jax.Array):
            logits, *_, state = step(jax.tree.unflatten(structure, leaves), tokens)
            new = jax.tree.leaves(state)
            return logits, [leaf for leaf, c in zip(new, changes, strict=True) if c]

        given, kept = iter(changing), iter(constant)
        state = [next(given) if c else next(kept) for c in changes]
        logits, new = jax.vmap(one_beam, (axes, 1), 1)(state, tokens)
        return _log_probabilities(logits.astype(jnp.float32)), new

    def body(beams: _Beams) -> _Beams:
        log_probabilities, changing = advance(beams.changing, beams.last)
        size = log_probabilities.shape[-1]
        for token in (end, *forbidden):
            check_number("a token", token, whole=True, least=0, below=size)
        steps = jnp.where(np.isin(np.arange(size), forbidden), -jnp.inf, log_probabilities)
        # One that has ended goes on in one way only: as it is, with padding.
        staying = jnp.where(np.arange(size) == pad, 0.0, -jnp.inf)
        sums = beams.sums[:, :, None] + jnp.where(beams.ended[:, :, None], staying, steps)
        lengths = beams.lengths + ~beams.ended
        scores = sums / (lengths[:, :, None].astype(jnp.float32) ** length_penalty)
        _, chosen = jax.lax.top_k(scores.reshape(n, -1), beam)
        parents, last = chosen // size, (chosen % size).astype(jnp.int32)

        def of_parents(values: jax.Array) -> jax.Array:
            return jax.vmap(lambda values, parents: values[parents])(values, parents)

        return _Beams(
            length=beams.length + 1,
            tokens=of_parents(beams.tokens).at[:, :, beams.length].set(last),
            last=last,
            sums=jnp.take_along_axis(sums.reshape(n, -1), chosen, 1),
            lengths=of_parents(lengths),
            ended=of_parents(beams.ended) | (last == end),
            changing=[of_parents(leaf) for leaf in changing],
        )

    def goes_on(beams: _Beams) -> jax.Array:
        living = ~beams.ended & (beams.sums > -jnp.inf)
        return (beams.length < max_length) & jnp.any(living)

    def spread(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[:, None], (n, beam, *leaf.shape[1:]))

    # All beams begin alike: only the first one counts, until a step gives it rivals.
    first = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf)
    beams = _Beams(
        length=jnp.int32(0),
        tokens=jnp.full((n, beam, max_length), pad, jnp.int32),
        last=jnp.full((n, beam), start, jnp.int32),
        sums=jnp.broadcast_to(first, (n, beam)),
        lengths=jnp.zeros((n, beam), jnp.int32),
        ended=jnp.zeros((n, beam), bool),
        changing=[spread(leaf) for leaf, c in zip(leaves, changes, strict=True) if c],
    )
    beams = jax.lax.while_loop(goes_on, body, beams)
    scores = beams.sums / jnp.maximum(beams.lengths, 1).astype(jnp.float32) ** length_penalty
    tokens = jnp.where((scores > -jnp.inf)[:, :, None], beams.tokens, pad)
    return Hypotheses(tokens, scores)


def _changes(step: Step, leaves: list[jax.Array], structure: Any) -> list[bool]:
    """For each leaf of the state, whether `step` returns another one."""
    changes: list[bool] = []

    def probe(leaves: list[jax.Array], tokens: jax.Array) -> None:
        *_, state = step(jax.tree.unflatten(structure, leaves), tokens)
        after, structure_after = jax.tree.flatten(state)
        if structure_after != structure:
            raise ValueError(f"step must return a state like {structure}, got {structure_after}")
        changes.extend(old is not new for old, new in zip(leaves, after, strict=True))

    jax.eval_shape(probe, leaves, jax.ShapeDtypeStruct(leaves[0].shape[:1], jnp.int32))
    return changes


def _log_probabilities(logits: jax.Array) -> jax.Array:
    """Log-softmax along the last axis, exact to rounding where a word is nearly certain, too."""
    shifted = logits - jnp.max(logits, -1, keepdims=True)
    first = jnp.argmax(logits, -1, keepdims=True) == jnp.arange(logits.shape[-1])
    return shifted - jnp.log1p(jnp.sum(jnp.exp(shifted), -1, where=~first, keepdims=True))

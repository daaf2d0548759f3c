import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from pb_jax.training.generation import beam_search

PAD, START, END = 0, 1, 2
SIZE, LIMIT = 6, 4
TOKENS = {"start": START, "end": END, "pad": PAD}


def tables(seed, n=3):
    """For each example a model whose next word depends on the last two and the position."""
    return np.random.default_rng(seed).normal(size=(n, LIMIT, SIZE, SIZE, SIZE), scale=2.0)


def toy_step(state, tokens):
    table, position, before = state

    def one(table, position, before, token):
        return table[position, before, token]

    logits = jax.vmap(one)(table, position, before, tokens)
    return logits, "alphas", (table, position + 1, tokens)


def toy_start(table):
    n = len(table)
    zeros = jnp.zeros(n, jnp.int32)
    return jnp.asarray(table, jnp.float32), zeros, zeros


@functools.partial(jax.jit, static_argnames=("beam", "max_length", "length_penalty", "never"))
def search(table, *, beam, max_length=LIMIT, length_penalty=0.0, never=()):
    return beam_search(
        toy_start(table),
        toy_step,
        beam=beam,
        max_length=max_length,
        length_penalty=length_penalty,
        never=never,
        **TOKENS,
    )


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def score_of(table, sequence, penalty):
    before, last, total = 0, START, 0.0
    for position, token in enumerate(sequence):
        total += log_softmax(table[position, before, last])[token]
        before, last = last, token
    return total / len(sequence) ** penalty


def every_sequence(max_length=LIMIT, words=(3, 4, 5)):
    """All that may be generated: words and an end, or words up to the limit."""
    for length in range(max_length):
        for body in itertools.product(words, repeat=length):
            yield (*body, END)
    yield from itertools.product(words, repeat=max_length)


def exhaustive(table, penalty=0.0, **options):
    scored = [(score_of(table, s, penalty), s) for s in every_sequence(**options)]
    return sorted(scored, reverse=True)


def padded(sequence, length=LIMIT):
    return [*sequence, *[PAD] * (length - len(sequence))]


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(penalty):
    table = tables(0)
    beam = 130  # more than there are sequences: 121
    found = search(table, beam=beam, length_penalty=penalty)
    for tokens, scores, example in zip(*map(np.asarray, found), table, strict=True):
        wanted = exhaustive(example, penalty)
        assert len(wanted) == 121
        assert tokens[:121].tolist() == [padded(s) for _, s in wanted]
        np.testing.assert_allclose(scores[:121], [score for score, _ in wanted], rtol=1e-5)
        assert (scores[121:] == -np.inf).all()
        assert (tokens[121:] == PAD).all()


def plain_beam_search(table, beam, penalty):
    """The same, written with lists."""
    beams = [(0.0, ())]
    for _ in range(LIMIT):
        candidates = []
        for _, sequence in beams:
            if sequence and sequence[-1] == END:
                longer = [sequence]
            else:
                longer = [(*sequence, token) for token in (END, 3, 4, 5)]
            candidates += [(score_of(table, s, penalty), s) for s in longer]
        beams = sorted(candidates, reverse=True)[:beam]
    return beams


@hypothesis.example(seed=5095, beam=1, penalty=0.0)  # a score of -0.004
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beam=st.sampled_from([1, 2, 3]),
    penalty=st.sampled_from([0.0, 1.0]),
)
def test_properties(seed, beam, penalty):
    table = tables(seed, n=2)
    found = search(table, beam=beam, length_penalty=penalty)
    for tokens, scores, example in zip(*map(np.asarray, found), table, strict=True):
        wanted = plain_beam_search(example, beam, penalty)
        assert tokens.tolist() == [padded(s) for _, s in wanted]
        np.testing.assert_allclose(scores, [score for score, _ in wanted], rtol=1e-5)
        assert len({tuple(row) for row in tokens.tolist()}) == beam
        assert (np.diff(scores) <= 0).all()
        for row in tokens.tolist():
            length = row.index(END) + 1 if END in row else LIMIT
            assert not {PAD, START} & set(row[:length])
            assert set(row[length:]) <= {PAD}


def test_greedy_takes_the_likeliest_word_each_time():
    table = tables(7)
    found = search(table, beam=1)
    for tokens, example in zip(np.asarray(found.tokens)[:, 0], table, strict=True):
        before, last, sequence = 0, START, []
        while len(sequence) < LIMIT and last != END:
            logits = example[len(sequence), before, last].copy()
            logits[[PAD, START]] = -np.inf
            before, last = last, int(logits.argmax())
            sequence.append(last)
        assert tokens.tolist() == padded(sequence)


def test_examples_do_not_touch_each_other():
    table = tables(3, n=5)
    together = search(table, beam=3)
    alone = [search(table[i : i + 1], beam=3) for i in range(5)]
    np.testing.assert_array_equal(together.tokens, np.concatenate([a.tokens for a in alone]))
    np.testing.assert_allclose(
        together.scores, np.concatenate([a.scores for a in alone]), rtol=1e-6
    )


def test_the_limit_cuts():
    table = tables(4)
    table[..., END] = -30.0
    found = search(table, beam=2, max_length=3)
    assert found.tokens.shape == (3, 2, 3)
    assert (np.asarray(found.tokens) > END).all()


def test_words_that_are_never_to_come():
    table = tables(5)
    table[..., 4] += 10.0
    assert (np.asarray(search(table, beam=3).tokens) == 4).any()
    found = search(table, beam=3, never=(4,))
    assert not (np.asarray(found.tokens) == 4).any()
    # Their probability is not shared out among the others.
    wanted = exhaustive(table[0], words=(3, 5))[0]
    assert float(found.scores[0, 0]) <= wanted[0] + 1e-5


def test_it_stops_when_all_have_ended():
    calls = []

    def step(state, tokens):
        jax.debug.callback(lambda: calls.append(1))
        logits = jnp.where(jnp.arange(SIZE) == END, 9.0, jnp.where(state[:, None] > 0, -99.0, 0.0))
        return logits, state + 1

    found = beam_search(jnp.zeros(2, jnp.int32), step, beam=2, max_length=50, **TOKENS)
    jax.effects_barrier()
    assert found.tokens[:, 0, 0].tolist() == [END, END]
    assert len(calls) < 10


def test_a_longer_caption_wins_by_the_penalty():
    after = jnp.log(
        jnp.array([[1e-9, 1e-9, 0.55, 0.45, 0, 0], *[[1e-9, 1e-9, 0.9, 0.1, 0, 0]] * 5])
    )

    def step(state, tokens):
        return jnp.where((tokens == START)[:, None], after[0], after[1]), state

    def best(penalty):
        found = beam_search(
            jnp.zeros(1), step, beam=3, max_length=4, length_penalty=penalty, **TOKENS
        )
        return found.tokens[0, 0].tolist()

    assert best(0.0) == [END, PAD, PAD, PAD]
    assert best(1.0) == [3, END, PAD, PAD]


def test_the_captioner_generates():
    model = models.Captioner(9, channels=4, hidden=5, embedding=3, attention=6, rngs=nnx.Rngs(0))
    model.eval()
    features = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 4)), jnp.float16)

    @nnx.jit
    def generate(model, features):
        return beam_search(model.start(features), model.step, beam=4, max_length=6, **TOKENS)

    tokens, scores = map(np.asarray, generate(model, features))
    assert len({tuple(row) for row in tokens[0]}) == 4
    pictures = jnp.repeat(features, 4, 0)
    rows = tokens.reshape(12, 6)
    before = np.concatenate([np.full((12, 1), START), rows[:, :-1]], 1)
    logits, _ = nnx.jit(lambda model: model(pictures, before))(model)
    steps = jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, :, None], -1)[:, :, 0]
    wanted = jnp.sum(jnp.where(rows == PAD, 0.0, steps), 1)
    np.testing.assert_allclose(scores.ravel(), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be"),
        ({"max_length": 0}, "max_length must be"),
        ({"length_penalty": -1.0}, "length_penalty must be"),
        ({"end": PAD}, "end must be none"),
        ({"never": (END,)}, "end must be none"),
        ({"never": (SIZE,)}, "a token must be"),
    ],
)
def test_arguments_that_are_not_allowed(options, message):
    arguments = {"beam": 2, "max_length": 3, **TOKENS, **options}
    with pytest.raises(ValueError, match=message):
        beam_search(toy_start(tables(0)), toy_step, **arguments)


def test_states_that_are_not_allowed():
    with pytest.raises(ValueError, match="start_state must hold"):
        beam_search((), toy_step, beam=2, max_length=3, **TOKENS)

    def forgetful(state, tokens):
        return toy_step(state, tokens)[0], state[0]

    with pytest.raises(ValueError, match="step must return a state like"):
        beam_search(toy_start(tables(0)), forgetful, beam=2, max_length=3, **TOKENS)

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pb_jax
from pb_jax.data.vocabulary import END, PAD, START
from pb_jax.errors import UserError
from pb_jax.reports.page.captions import read_samples
from pb_jax.training import Freezing, Plateau, metrics, read_model
from pb_jax.training.batches import few_lengths, training_order_by_length
from pb_jax.training.bleu import corpus_bleu
from tests.tiny_captions import (
    tiny_captioning,
    tiny_captioning_fit,
    tiny_pictures,
    tiny_plateau,
)
from tests.tiny_training import assert_same_run, lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, tiny_captioning_fit(workdir, 6)


def test_it_learns_to_say_what_it_sees(whole):
    workdir, summary = whole
    records = metrics.read(workdir / "metrics.jsonl")
    assert summary["val_bleu4"] == max(record["val_bleu4"] for record in records) > 0.8
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    written = json.loads((workdir / "test_captions.json").read_text())
    test = tiny_pictures(5, 2)
    assert list(written) == list(test.names)
    scores = corpus_bleu(list(written.values()), test.captions)
    assert scores == {name: summary[f"test_{name}"] for name in scores}
    assert summary["frozen_fraction"] == pytest.approx(0.5, abs=0.01)


def test_samples_say_what_was_written_and_looked_at(whole):
    workdir, _ = whole
    written = json.loads((workdir / "test_captions.json").read_text())
    first, second = read_samples(workdir)
    assert [first.name, second.name] == list(written)[:2]
    assert [" ".join(sample.words) for sample in (first, second)] == list(written.values())[:2]
    assert (first.pixels == 9).all()
    assert first.alphas.shape == (len(first.words), 2, 3)
    np.testing.assert_allclose(first.alphas.sum((1, 2)), 1, atol=1e-5)


def test_the_test_scores_are_of_the_best_epoch(whole):
    workdir, summary = whole
    task = tiny_captioning()
    kept = read_model(workdir / "checkpoints", summary["best_epoch"], task.params, task.model_state)
    scores = corpus_bleu(task.generate(*kept, tiny_pictures(5, 2).inputs), tiny_pictures(5, 2)[2])
    assert scores["bleu4"] == summary["test_bleu4"]


def test_the_rate_falls_with_each_epoch_that_is_no_better(whole):
    records = metrics.read(whole[0] / "metrics.jsonl")
    scores = [record["val_bleu4"] for record in records]
    plateau = tiny_plateau()
    expected = [np.float32(plateau.rate(scores[:n])) for n in range(len(scores))]
    assert [np.float32(record["learning_rate"]) for record in records] == expected
    assert len(set(expected)) > 1  # or nothing was tested


@pytest.mark.parametrize("first", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_resumed_run_is_the_same_to_the_bit(whole, tmp_path, first):
    tiny_captioning_fit(tmp_path / "run", first)
    tiny_captioning_fit(tmp_path / "run", 6)
    assert_same_run(whole[0], tmp_path / "run", 6)
    scores = [{k: v for k, v in line.items() if "bleu" in k} for line in lines(whole[0])]
    assert all(len(score) == 4 for score in scores)


def test_it_ends_when_the_score_has_not_risen_for_long(tmp_path):
    plateau = tiny_plateau(learning_rate=1e-7, patience=5, stop=2)  # too slow to learn anything
    summary = tiny_captioning_fit(tmp_path, 20, learning_rate=plateau, freezing=None)
    assert summary["epochs"] == len(lines(tmp_path)) == summary["best_epoch"] + 2 < 20
    assert summary["epochs_asked"] == 20
    again = tiny_captioning_fit(tmp_path, 20, learning_rate=plateau, freezing=None)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }


@pytest.mark.slow
def test_several_batches_can_judge_a_mask(tmp_path):
    task = tiny_captioning()
    rule = pb_jax.kde_otsu(learning_rate=0.03)
    freezing = Freezing(rule, task.steps_per_epoch, start_epoch=2, batches=3, alpha=0.03)
    summary = tiny_captioning_fit(tmp_path, 2, freezing=freezing)
    assert 0 < summary["frozen_fraction"] < 1
    assert summary["threshold"] > 0


def test_the_loss_by_hand():
    task = tiny_captioning(regularisation=0.7)
    data, rows = task.train_data(), jnp.array([0, 1, 5])
    length = task.lengths[-1]
    batch = task.gather(data, rows, length)
    loss, outcome = task.loss(task.params, task.model_state, batch)
    model = task._merge(task.params, task.model_state)
    model.train()
    tokens = np.asarray(data.tokens)[np.asarray(rows)]
    logits, alphas = model(data.inputs[data.picture[rows]], tokens[:, :-1])
    logits, alphas = np.asarray(logits, np.float64), np.asarray(alphas, np.float64)
    total, words, right, looked = 0.0, 0, 0, np.zeros((3, 6))
    for n, row in enumerate(tokens[:, 1:]):
        for t, word in enumerate(row):
            if word == PAD:
                continue
            p = np.exp(logits[n, t] - logits[n, t].max())
            total -= np.log(p[word] / p.sum())
            words += 1
            right += int(logits[n, t].argmax() == word)
            looked[n] += alphas[n, t]
    expected = total / words + 0.7 * np.mean((1 - looked) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (int(outcome.correct), int(outcome.counted)) == (right, words)


def test_padding_changes_neither_loss_nor_gradient():
    task = tiny_captioning(dropout=0.0)
    data = task.train_data()
    sizes = (np.asarray(data.tokens) != PAD).sum(1) - 1
    rows = jnp.asarray(np.flatnonzero(sizes == sizes.min())[:4])
    longer = data._replace(tokens=jnp.pad(data.tokens, ((0, 0), (0, 3))))

    def loss(params, data, length):
        return task.loss(params, task.model_state, task.gather(data, rows, length))[0]

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    value, one = gradient(task.params, data, int(sizes.min()))
    same, other = gradient(task.params, longer, int(sizes.max()) + 3)
    assert float(value) == pytest.approx(float(same), rel=1e-6)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6, err_msg=name)


def test_evaluation_counts_every_caption_once():
    task = tiny_captioning()
    order = task.evaluation_order()
    rows = order.rows[order.rows >= 0]
    data = task.evaluation_data()
    assert sorted(rows) == list(range(len(data.tokens)))
    words = int((np.asarray(data.tokens)[:, 1:] != PAD).sum())
    counted = 0
    for row, length in zip(order.rows, order.lengths, strict=True):
        batch = task.gather(data, jnp.maximum(row, 0), length)
        totals = task.evaluate(task.params, task.model_state, batch, jnp.asarray(row >= 0))
        counted += int(totals.counted)
    assert counted == words


def test_batches_read_on_the_host_are_those_gathered_on_the_device():
    task = tiny_captioning()
    for evaluation, data in ((False, task.train_data()), (True, task.evaluation_data())):
        rows = np.array([[3, 1], [0, 5]])
        read = task.read(rows, 4, evaluation=evaluation)
        gathered = task.gather(data, jnp.asarray(rows), 4)
        for one, other in zip(read, gathered, strict=True):
            np.testing.assert_array_equal(one, other)


def test_generated_captions_hold_words_only():
    task = tiny_captioning()
    pictures = tiny_pictures(53, 4)  # more than are generated together
    captions = task.generate(task.params, task.model_state, pictures.inputs)
    assert len(captions) == 53
    assert not any("<" in caption for caption in captions)
    assert captions[50:] == task.generate(task.params, task.model_state, pictures.inputs[50:])


def test_fewer_captions_than_a_batch():
    few = tiny_pictures(3, 0)
    with pytest.raises(UserError, match="batch_size=10 is more than the 6 training captions"):
        tiny_captioning(train=few)


def test_an_epoch_holds_every_caption_once_in_batches_of_like_length():
    sizes = 3 + np.random.default_rng(0).poisson(9, 1003)
    lengths = few_lengths(sizes)
    rows, padded = training_order_by_length(1, 2, sizes, 10, lengths, pool=50)
    assert rows.shape == (100, 10)
    assert len(set(rows.ravel())) == 1000
    assert all(
        sizes[row].max() <= length and (length == lengths[0] or sizes[row].max() > shorter)
        for row, length in zip(rows, padded, strict=True)
        for shorter in [max([s for s in lengths if s < length], default=0)]
    )
    assert np.mean(padded) < 1.2 * sizes.mean()  # not sorted it would be 1.5
    other, _ = training_order_by_length(1, 3, sizes, 10, lengths, pool=50)
    assert not np.array_equal(rows, other)
    again, _ = training_order_by_length(1, 2, sizes, 10, lengths, pool=50)
    np.testing.assert_array_equal(rows, again)


def test_tokens_begin_and_end():
    tokens = np.asarray(tiny_captioning().train_data().tokens)
    assert (tokens[:, 0] == START).all()
    assert ((tokens == END).sum(1) == 1).all()


def test_plateau_as_the_paper_says():
    plateau = Plateau(5e-4, decay=0.8, patience=3, stop=10)
    scores = [0.1, 0.2] + [0.15] * 10
    rates = [plateau.rate(scores[:n]) / 5e-4 for n in range(len(scores) + 1)]
    assert rates[:5] == [1.0] * 5
    assert rates[5] == pytest.approx(0.8)
    assert rates[8] == pytest.approx(0.64)
    assert [plateau.over(scores[:n]) for n in (0, 11, 12)] == [False, False, True]

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models.captioner import Captioner
from pb_jax.training.modules import dotted

SIZES = {"hidden": 6, "embedding": 4, "attention": 5}
VOCABULARY, CHANNELS, GRID = 11, 7, (2, 3)


def captioner(seed=0, **options):
    return Captioner(VOCABULARY, channels=CHANNELS, rngs=nnx.Rngs(seed), **{**SIZES, **options})


@nnx.jit
def run(model, features, tokens):
    return model(features, tokens)


def batch(n=3, steps=4, dtype=np.float32):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(n, *GRID, CHANNELS)).astype(dtype)
    tokens = rng.integers(3, VOCABULARY, (n, steps)).astype(np.int32)
    tokens[:, 0] = 1
    return features, tokens


def arrays_of(model):
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {dotted(path): np.asarray(leaf[...], np.float64) for path, leaf in state}


def logistic(x):
    return 1 / (1 + np.exp(-x))


def reference(model, features, tokens):
    """The equations, word by word and picture by picture, in float64."""
    p = arrays_of(model)
    all_logits, all_alphas = [], []
    for picture, words in zip(features.astype(np.float64), tokens, strict=True):
        a = picture.reshape(-1, CHANNELS)
        h, c = (
            a.mean(0) @ p[f"initial_{name}.kernel"] + p[f"initial_{name}.bias"]
            for name in ("hidden", "cell")
        )
        for word in words:
            layer = a @ p["attention_features.kernel"] + p["attention_features.bias"]
            layer = np.tanh(layer + h @ p["attention_hidden.kernel"])
            score = layer @ p["attention_score.kernel"][:, 0]
            alpha = np.exp(score) / np.exp(score).sum()
            z = logistic(h @ p["gate.kernel"] + p["gate.bias"]) * (alpha @ a)
            gates = p["embedding.embedding"][word] @ p["lstm_words.kernel"] + p["lstm_words.bias"]
            gates = gates + h @ p["lstm_hidden.kernel"] + z @ p["lstm_context.kernel"]
            i, f, g, o = np.split(gates, 4)
            c = logistic(f) * c + logistic(i) * np.tanh(g)
            h = logistic(o) * np.tanh(c)
            all_logits.append(h @ p["output.kernel"] + p["output.bias"])
            all_alphas.append(alpha)
    shape = (*tokens.shape, -1)
    return np.reshape(all_logits, shape), np.reshape(all_alphas, shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_against_the_equations_in_numpy(dtype):
    model = captioner()
    model.eval()
    features, tokens = batch(dtype=dtype)
    logits, alphas = run(model, features, tokens)
    wanted_logits, wanted_alphas = reference(model, features, tokens)
    assert logits.dtype == alphas.dtype == jnp.float32
    np.testing.assert_allclose(logits, wanted_logits, atol=2e-6)
    np.testing.assert_allclose(alphas, wanted_alphas, atol=2e-6)
    np.testing.assert_allclose(alphas.sum(-1), 1, atol=1e-6)
    assert np.ptp(alphas, -1).min() > 1e-3  # it does not look everywhere alike


def loss_of(outputs, tokens):
    logits, alphas = outputs
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()
    return loss + jnp.mean((1 - alphas.sum(1)) ** 2)


def word_by_word(model, features, tokens):
    state, outputs = model.start(features), []
    for column in tokens.T:
        logits, alphas, state = model.step(state, column)
        outputs.append((logits, alphas))
    logits, alphas = zip(*outputs, strict=True)
    return jnp.stack(logits, 1), jnp.stack(alphas, 1)


def test_step_by_step_gives_the_same():
    model = captioner()
    model.eval()
    features, tokens = batch()
    got, wanted = nnx.jit(word_by_word)(model, features, tokens), run(model, features, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, wanted)


def test_gradients_are_those_of_the_plain_loop():
    model = captioner()
    model.eval()
    features, tokens = batch(steps=3)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def gradients(apply):
        def loss(params, features):
            return loss_of(apply(nnx.merge(graph, params, rest), features, tokens), tokens)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.asarray(features))

    got = gradients(lambda model, *inputs: model(*inputs))
    wanted = gradients(word_by_word)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_dropout_only_in_training_and_new_each_time():
    model = captioner(dropout=0.5)
    features, tokens = batch()
    model.eval()
    calm = run(model, features, tokens)
    np.testing.assert_array_equal(calm[0], run(model, features, tokens)[0])
    model.train()
    first, second = run(model, features, tokens), run(model, features, tokens)
    assert not np.allclose(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])  # the state is left alone
    np.testing.assert_allclose(first[1], calm[1], atol=1e-6)


def test_dropout_keeps_the_mean_and_differs_from_word_to_word():
    features, tokens = (np.repeat(part[:1], 4000, 0) for part in batch(steps=2))
    model = captioner(dropout=0.5)
    dropped = np.asarray(run(model, features, tokens)[0])
    model.eval()
    calm = np.asarray(run(model, features, tokens)[0][0])
    np.testing.assert_allclose(dropped.mean(0), calm, atol=6 * dropped.std(0).max() / 4000**0.5)
    spread = np.corrcoef(dropped[:, 0, 0], dropped[:, 1, 0])[0, 1]
    assert abs(spread) < 0.1


def test_bfloat16_computes_close_by():
    features, tokens = batch()
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = captioner(dtype=dtype)
        model.eval()
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
            jnp.dtype("float32")
        }
        outputs.append(run(model, features, tokens))
    assert outputs[1][0].dtype == outputs[1][1].dtype == jnp.float32
    np.testing.assert_allclose(outputs[1][0], outputs[0][0], atol=0.02)
    assert not np.array_equal(outputs[1][0], outputs[0][0])


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, CHANNELS, rngs=rngs)

    def __call__(self, images):
        return self.layer(images[:, ::4, ::4] / 255)


def test_an_encoder_trains_along():
    model = captioner(encoder=Encoder(nnx.Rngs(3)))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
    tokens = batch(n=2, steps=2)[1]

    def loss(model):
        outputs = model(images, tokens)
        return loss_of(outputs, tokens), outputs

    gradient, (logits, alphas) = nnx.jit(nnx.grad(loss, has_aux=True))(model)
    assert logits.shape == (2, 2, VOCABULARY)
    assert alphas.shape == (2, 2, 6)
    assert np.abs(gradient["encoder"]["layer"]["kernel"][...]).max() > 0


def test_initial_values():
    model = Captioner(500, channels=90, hidden=64, embedding=40, attention=50, rngs=nnx.Rngs(0))
    arrays = arrays_of(model)
    bounds = {
        "embedding.embedding": 0.1,
        "initial_hidden": 90**-0.5,
        "initial_cell": 90**-0.5,
        "attention_features": 90**-0.5,
        "attention_hidden": 64**-0.5,
        "attention_score": 50**-0.5,
        "gate": 64**-0.5,
        "lstm": 64**-0.5,
        "output": 64**-0.5,
    }
    for name, values in arrays.items():
        bound = next(bound for key, bound in bounds.items() if name.startswith(key))
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound, name
        assert abs(values.mean()) < 0.2 * bound
    sizes = [values.size for values in arrays.values()]
    assert sum(sizes) == (
        500 * 40
        + 3 * 90 * 64
        + 2 * 64
        - 90 * 14
        + 50
        + 64 * 50
        + 50  # states and attention
        + 64 * 90
        + 90  # gate
        + (40 + 90 + 64) * 256
        + 256
        + 64 * 500
        + 500
    )


@pytest.mark.parametrize(
    ("features", "tokens", "message"),
    [
        (np.zeros((2, 3, 3, CHANNELS + 1), np.float32), np.ones((2, 3), np.int32), "channels"),
        (np.zeros((2, 9, CHANNELS), np.float32), np.ones((2, 3), np.int32), "N, h, w"),
        (np.zeros((2, 3, 3, CHANNELS), np.uint8), np.ones((2, 3), np.int32), "uint8"),
        (np.zeros((2, 3, 3, CHANNELS), np.float32), np.ones((3, 3), np.int32), "tokens"),
        (np.zeros((2, 3, 3, CHANNELS), np.float32), np.ones((2, 3), np.float32), "tokens"),
        (np.zeros((2, 3, 3, CHANNELS), np.float32), np.ones(2, np.int32), "tokens"),
    ],
)
def test_inputs_that_do_not_fit(features, tokens, message):
    with pytest.raises(ValueError, match=message):
        captioner()(features, tokens)


@pytest.mark.parametrize(
    "options", [{"hidden": 0}, {"embedding": -1}, {"attention": 0}, {"dropout": 1.0}]
)
def test_sizes_that_are_not_allowed(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        captioner(**options)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.convolution import convolution
from models.layers import BatchNorm, Network, conv, dense, global_avg_pool
from models.trained_channels import for_channels, pays
from pb_jax.training.modules import functional

NUMBERS = ("NHWC", "HWIO", "NHWC")
TRAINED = np.array([1, 2, 6], np.int32)


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


CASES = {
    "3x3": (functools.partial(convolution, window_strides=(1, 1), padding="SAME"), (3, 3, 5, 8)),
    "strided": (
        functools.partial(convolution, window_strides=(2, 2), padding=((1, 1), (1, 1))),
        (3, 3, 5, 8),
    ),
    "dense": (jnp.dot, (5, 8)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("3x3", jnp.float32),
        pytest.param("strided", jnp.bfloat16, marks=pytest.mark.slow),
        ("dense", jnp.float32),
    ],
)
def test_gradients_are_those_of_the_plain_product(name, dtype):
    product, shape = CASES[name]
    plain = product if name == "dense" else functools.partial(product, dimension_numbers=NUMBERS)
    kernel = normal(0, *shape, dtype=dtype)
    x = normal(1, *((4, 5) if name == "dense" else (4, 6, 6, 5)), dtype=dtype)

    @jax.jit
    def found(x, kernel):
        results = []
        for function in (for_channels(plain, TRAINED), plain):
            value, pull = jax.vjp(function, x, kernel)
            results += [value, *pull(normal(2, *value.shape, dtype=dtype))]
        return results

    value, for_x, for_kernel, same, same_for_x, wanted = map(np.asarray, found(x, kernel))
    np.testing.assert_array_equal(value, same)
    np.testing.assert_array_equal(for_x, same_for_x)
    assert for_kernel.dtype == wanted.dtype
    rest = np.setdiff1d(np.arange(8), TRAINED)
    assert not for_kernel[..., rest].any()
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    scale = np.abs(wanted.astype(np.float32)).max()
    np.testing.assert_allclose(
        for_kernel[..., TRAINED].astype(np.float32) / scale,
        wanted[..., TRAINED].astype(np.float32) / scale,
        atol=tolerance,
    )


def test_no_channel_at_all():
    product = for_channels(jnp.dot, np.zeros(0, np.int32))
    for_x, for_kernel = jax.grad(lambda x, w: jnp.sum(product(x, w)), (0, 1))(
        jnp.ones((2, 3)), jnp.ones((3, 4))
    )
    assert np.all(np.asarray(for_x) == 4)
    assert not np.any(for_kernel)


class Small(Network):
    """A convolution, batch norm, a convolution and a dense layer."""

    def __init__(self, num_classes, *, rngs, dtype, precision):
        computed = {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.blocks = nnx.List(
            [
                conv(3, 16, 3, padding=1, use_bias=True, **computed),
                BatchNorm(16, rngs=rngs),
                conv(16, 32, 3, padding=1, **computed),
            ]
        )
        self.head = dense(32, num_classes, **computed)

    def __call__(self, images):
        x = images
        for layer in self.blocks:
            x = jax.nn.relu(layer(x))
        return self.head(global_avg_pool(x))


CHANNELS = {
    "blocks.0.kernel": np.array([0, 3, 9], np.int32),
    "blocks.2.kernel": np.arange(0, 32, 5, dtype=np.int32),
    "head.kernel": np.array([4], np.int32),
}


def gradients(model, images, trained):
    """A compiled function of the parameters, and these."""
    apply, params, state, _ = functional(model)
    prepare = None if trained is None else lambda module: module.train_channels(trained)

    def loss(params):
        return jnp.sum(jnp.sin(apply(params, state, images, train=True, prepare=prepare)[0]))

    options = models.compiler_options(jax.default_backend())
    return jax.jit(jax.value_and_grad(loss), compiler_options=options), params


def test_a_network_trains_as_it_did():
    model = Small(10, rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None)
    images = normal(0, 4, 8, 8, 3)
    functions = [gradients(model, images, trained) for trained in (None, CHANNELS)]
    plain, narrow = (function.lower(params).compile() for function, params in functions)
    params = functions[0][1]
    (value, wanted), (same, found) = plain(params), narrow(params)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    for name, gradient in jax.device_get(wanted).items():
        channels = CHANNELS.get(name, np.arange(gradient.shape[-1]))
        got, scale = np.asarray(found[name]), np.abs(gradient).max()
        np.testing.assert_allclose(
            got[..., channels], gradient[..., channels], atol=1e-5 * scale, err_msg=name
        )
        rest = np.setdiff1d(np.arange(gradient.shape[-1]), channels)
        assert not got[..., rest].any(), name
    # A third of the work is weight gradients, of which four fifths are left out.
    assert narrow.cost_analysis()["flops"] < 0.85 * plain.cost_analysis()["flops"]


def test_where_most_channels_train_nothing_is_changed():
    assert pays(8, 16)
    assert not pays(9, 16)
    model = Small(10, rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None)
    model.train_channels({"blocks.0.kernel": np.arange(9, dtype=np.int32)})
    assert model.blocks[0].conv_general_dilated is convolution
    model.train_channels({"blocks.0.kernel": np.arange(8, dtype=np.int32)})
    assert model.blocks[0].conv_general_dilated is not convolution


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_takes_it(name):
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0)))
    layers = {
        ".".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.Conv | nnx.Linear)
    }
    before = {
        path: layer.conv_general_dilated if isinstance(layer, nnx.Conv) else layer.dot_general
        for path, layer in layers.items()
    }
    model.train_channels({f"{path}.kernel": np.arange(2, dtype=np.int32) for path in layers})
    for path, layer in layers.items():
        now = layer.conv_general_dilated if isinstance(layer, nnx.Conv) else layer.dot_general
        assert now is not before[path], path


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "lenet5" else pytest.mark.slow) for n in models.NAMES]
)
def test_every_network_can_be_differentiated(name):
    def found():
        model = models.create(name, rngs=nnx.Rngs(0))
        images = jnp.zeros((2, model.height_width, model.height_width, model.channels))
        apply, params, state, _ = functional(model)
        trained = {path: np.arange(1, dtype=np.int32) for path in params if path.endswith("kernel")}

        def loss(params):
            prepare = lambda module: module.train_channels(trained)  # noqa: E731
            return jnp.sum(apply(params, state, images, train=True, prepare=prepare)[0])

        return params, jax.grad(loss)(params)

    params, gradients = jax.eval_shape(found)
    assert params == gradients

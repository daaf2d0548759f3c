import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import models
from pb_jax.errors import UserError

PARAMETERS = {
    "lenet5": 79_214,
    "vgg19": 20_040_522,
    "resnet110": 1_727_962,
    "densenet121": 1_000_618,
}
DEEP = ("resnet110", "densenet121")
SHAPES = {name: (28, 28, 1) if name == "lenet5" else (32, 32, 3) for name in PARAMETERS}


@functools.cache
def abstract(name, *args, **kwargs):
    return nnx.eval_shape(lambda: models.create(name, *args, rngs=nnx.Rngs(0), **kwargs))


def images(name, count=2):
    return jax.random.normal(jax.random.key(0), (count, *SHAPES[name]))


def sizes(model):
    return [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def test_every_network_is_named():
    assert set(models.NAMES) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert sum(sizes(abstract(name))) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_and_dtypes(name):
    model = abstract(name, 7, dtype=jnp.bfloat16, precision="highest")
    logits = nnx.eval_shape(lambda m, x: m(x), model, images(name))
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_bfloat16_is_what_layers_compute_in():
    model = models.create("lenet5", rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    seen = []
    for name in ("conv1", "conv2", "fc1", "fc2", "fc3"):
        layer = getattr(model, name)
        setattr(model, name, lambda x, layer=layer: seen.append(layer(x).dtype) or layer(x))
    model(images("lenet5"))
    assert seen == [jnp.bfloat16] * 4 + [jnp.float32]


@pytest.mark.parametrize("name", PARAMETERS)
def test_precision_reaches_every_layer(name):
    model = abstract(name, 7, dtype=jnp.bfloat16, precision="highest")
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv | nnx.Linear)]
    assert {layer.precision for layer in layers} == {"highest"}


@pytest.mark.parametrize("name", ["vgg19", "resnet110", "densenet121"])
def test_other_image_sizes(name):
    x = jax.ShapeDtypeStruct((3, 37, 65, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x), abstract(name), x).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("lenet5", (2, 32, 32, 1), "(N, 28, 28, 1)"),
        ("lenet5", (2, 1, 28, 28), "(N, 28, 28, 1)"),
        ("lenet5", (28, 28, 1), "(N, 28, 28, 1)"),
        ("vgg19", (2, 28, 28, 3), "(N, H, W, 3), H and W at least 32"),
        ("resnet110", (2, 3, 32, 32), "(N, H, W, 3), H and W at least 8"),
        ("densenet121", (2, 32, 32, 1), "(N, H, W, 3), H and W at least 8"),
    ],
)
def test_wrong_image_shapes(name, shape, expected):
    with pytest.raises(ValueError, match="expected images") as error:
        nnx.eval_shape(lambda m, x: m(x), abstract(name), jnp.zeros(shape))
    assert expected in str(error.value)
    assert str(shape) in str(error.value)


def test_raw_pixels_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        models.create("lenet5", rngs=nnx.Rngs(0))(jnp.zeros((2, 28, 28, 1), jnp.uint8))


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'resnet110'"):
        models.create("ResNet-11", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="lenet5, vgg19, resnet110, densenet121"):
        models.create("captioner", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("argument", [{"num_classes": 0}, {"num_classes": 2.0}, {"dtype": "int8"}])
def test_wrong_arguments(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        models.create("lenet5", rngs=nnx.Rngs(0), **argument)


@pytest.mark.parametrize("name", PARAMETERS)
def test_initial_values_fill_pytorchs_range(name):
    model = models.create(name, rngs=nnx.Rngs(0))
    checked = 0
    for _, module in nnx.iter_modules(model):
        if not isinstance(module, nnx.Conv | nnx.Linear):
            continue
        bound = 1 / math.sqrt(math.prod(module.kernel.shape[:-1]))
        variables = [module.kernel] if module.bias is None else [module.kernel, module.bias]
        for variable in variables:
            values = np.asarray(variable[...])
            assert np.abs(values).max() <= bound
            # Uniform: bound / sqrt(3), and its standard error is about half that / sqrt(n).
            deviation = np.sqrt(np.mean(values**2)) / (bound / math.sqrt(3))
            assert abs(deviation - 1) < 2.5 / math.sqrt(values.size)
            checked += 1
    assert checked == {"lenet5": 10, "vgg19": 34, "resnet110": 111, "densenet121": 122}[name]


def test_seeds_decide():
    first, again, other = (
        models.create("lenet5", rngs=nnx.Rngs(seed)).conv1.kernel[...] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_and_merged_inside_jit():
    model = models.create("lenet5", rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    merged = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images("lenet5"))
    np.testing.assert_allclose(merged, model(images("lenet5")), atol=1e-5)
    within = nnx.jit(lambda model, x: model(x))(model, images("lenet5"))
    np.testing.assert_allclose(within, merged, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["lenet5", "vgg19", *(pytest.param(deep, marks=pytest.mark.slow) for deep in DEEP)],
)
def test_training_lowers_for_every_platform(name):
    graph, params, statistics = nnx.split(abstract(name), nnx.Param, nnx.BatchStat)

    def loss(params, statistics, x):
        model = nnx.merge(graph, params, statistics)
        return jnp.sum(model(x)), nnx.state(model, nnx.BatchStat)

    arguments = [nnx.to_pure_dict(params), nnx.to_pure_dict(statistics), images(name)]
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    traced = gradient.trace(*arguments)
    for platform, barriers in (("cpu", True), ("cuda", False), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) is barriers


def test_export_for_all_platforms_runs_here():
    graph, state = nnx.split(models.create("lenet5", rngs=nnx.Rngs(0)))
    state = nnx.to_pure_dict(state)
    program = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    exported = export.export(program, platforms=["cpu", "cuda", "tpu"])(state, images("lenet5"))
    got = exported.call(state, images("lenet5"))
    np.testing.assert_allclose(got, program(state, images("lenet5")), atol=1e-5)

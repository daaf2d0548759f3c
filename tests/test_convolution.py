import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import models.convolution
from models.convolution import compiler_options, convolution, materialised

NHWC = ("NHWC", "HWIO", "NHWC")
# Images, kernel, strides, padding.
CASES = {
    "narrow": ((2, 9, 7, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1))),
    "to fewer": ((2, 9, 7, 40), (3, 3, 40, 33), (1, 1), ((1, 1), (1, 1))),
    "to more": ((2, 9, 7, 33), (3, 3, 33, 40), (1, 1), ((1, 1), (1, 1))),
    "four together": ((2, 9, 8, 16), (3, 3, 16, 12), (1, 1), ((1, 1), (1, 1))),
    "four together, to more": ((2, 9, 8, 12), (3, 3, 12, 16), (1, 1), ((0, 1), (1, 0))),
    "four together, few": ((2, 9, 8, 16), (3, 3, 16, 3), (1, 1), ((1, 1), (1, 1))),
    "large kernel, few": ((2, 9, 8, 16), (5, 5, 16, 3), (1, 1), "SAME"),
    "four together, valid": ((2, 9, 8, 13), (5, 5, 13, 16), (1, 1), "VALID"),
    "four together, wide kernel": ((2, 9, 16, 12), (3, 9, 12, 12), (1, 1), "SAME"),
    "wider than four together": ((2, 9, 16, 12), (1, 11, 12, 12), (1, 1), "SAME"),
    "wider than the images": ((2, 2, 4, 16), (1, 11, 16, 16), (1, 1), "SAME"),
    "column": ((2, 9, 8, 16), (5, 1, 16, 16), (1, 1), "SAME"),
    "pieces": ((6, 8, 8, 16), (3, 3, 16, 16), (1, 1), "SAME"),
    "even kernel": ((2, 9, 8, 16), (4, 3, 16, 16), (1, 1), "SAME"),
    "bottleneck": ((2, 8, 8, 48), (3, 3, 48, 12), (1, 1), ((1, 1), (1, 1))),
    "uneven padding, to more": ((2, 9, 7, 33), (3, 2, 33, 40), (1, 1), ((0, 2), (1, 0))),
    "wide padding": ((2, 9, 7, 40), (3, 3, 40, 33), (1, 1), ((3, 3), (3, 4))),
    "valid": ((2, 9, 7, 40), (4, 3, 40, 33), (1, 1), "VALID"),
    "colours": ((2, 9, 7, 3), (5, 3, 3, 33), (1, 1), "SAME"),
    "colours strided": ((2, 9, 7, 3), (5, 3, 3, 33), (2, 1), "VALID"),
    "colours in pairs": ((2, 9, 8, 3), (3, 3, 3, 24), (1, 1), ((1, 1), (1, 1))),
    "large kernel in pairs": ((2, 12, 12, 8), (5, 5, 8, 32), (1, 1), "VALID"),
    "grey in pairs": ((2, 9, 8, 1), (3, 2, 1, 5), (1, 1), ((0, 1), (1, 2))),
    "grey": ((3, 12, 12, 1), (5, 5, 1, 8), (1, 1), "VALID"),
    "tiny": ((2, 2, 2, 5), (3, 3, 5, 4), (2, 1), ((1, 1), (1, 1))),
    "pixel": ((2, 1, 1, 5), (3, 3, 5, 4), (1, 1), ((1, 1), (1, 1))),
    "pointwise": ((2, 9, 7, 5), (1, 1, 5, 4), (1, 1), "VALID"),
    "pointwise strided": ((2, 9, 7, 5), (1, 1, 5, 4), (2, 3), ((1, 0), (0, 2))),
    "winograd": ((2, 8, 6, 64), (3, 3, 64, 128), (1, 1), ((1, 1), (1, 1))),
    "winograd, smaller kernel gradient": ((2, 8, 6, 64), (3, 3, 64, 64), (1, 1), "SAME"),
    "winograd, uneven padding": ((2, 8, 6, 72), (3, 3, 72, 128), (1, 1), ((0, 2), (3, 1))),
    "winograd, valid": ((2, 8, 6, 128), (3, 3, 128, 64), (1, 1), "VALID"),
    "winograd, two pixels": ((2, 2, 2, 64), (3, 3, 64, 128), (1, 1), ((1, 1), (1, 1))),
    "odd results": ((2, 9, 6, 64), (3, 3, 64, 128), (1, 1), ((1, 1), (1, 1))),
    "strided even": ((2, 8, 8, 40), (3, 3, 40, 48), (2, 2), ((1, 1), (1, 1))),
    "strided odd": ((2, 9, 7, 40), (3, 2, 40, 48), (2, 1), "SAME"),
}


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32), dtype)


def arrays(images, kernel, dtype=jnp.float32):
    return normal(images, 0, dtype), normal(kernel, 1, dtype)


def values_and_gradients(function, x, kernel, settings, options=None):
    @functools.partial(jax.jit, compiler_options=options)
    def run(x, kernel):
        y, back = jax.vjp(functools.partial(function, **settings), x, kernel)
        return (y, *back(normal(y.shape, 2, y.dtype)))

    return run(x, kernel)


def assert_close(ours, stock, tolerance):
    for got, wanted in zip(ours, stock, strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        np.testing.assert_allclose(got, wanted, atol=tolerance * np.abs(wanted).max())


def assert_same_as_the_stock_one(case, options):
    images, kernel, strides, padding = CASES[case]
    settings = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    x, kernel = arrays(images, kernel)
    ours = values_and_gradients(convolution, x, kernel, settings, options)
    stock = values_and_gradients(lax.conv_general_dilated, x, kernel, settings)
    assert_close(ours, stock, 2e-6)


@pytest.mark.parametrize("case", CASES)
def test_same_as_the_stock_one(case):
    assert_same_as_the_stock_one(case, compiler_options("cpu"))


@pytest.fixture
def without_cache():
    """No compilation cache, which oneDNN's programs cannot be written to."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def test_same_as_the_stock_one_by_one_dnn(without_cache):
    if set(compiler_options("cpu")) == {"xla_disable_hlo_passes"}:
        pytest.skip("this XLA does not call oneDNN")
    for case in CASES:
        assert_same_as_the_stock_one(case, compiler_options("cpu"))


@pytest.mark.parametrize("case", ["four together", "winograd, valid", "pieces"])
def test_what_is_chosen_beside_one_dnn(case, monkeypatch):
    monkeypatch.setattr(models.convolution, "_asks_for_one_dnn", lambda: True)
    monkeypatch.setattr(models.convolution, "_PIECE", 10_000)
    assert_same_as_the_stock_one(case, None)


@pytest.mark.parametrize("case", ["to more", "colours", "pieces", "pointwise", "tiny", "winograd"])
def test_in_shard_map(case, monkeypatch):
    monkeypatch.setattr(models.convolution, "_asks_for_one_dnn", lambda: True)
    monkeypatch.setattr(models.convolution, "_PIECE", 5_000)
    images, kernel, strides, padding = CASES[case]
    settings = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    x, kernel = arrays(images, kernel)

    def gradient(function, kernel, x):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(function(x, kernel, **settings))))(kernel)

    def of_part(kernel, x):
        own = lax.pcast(kernel, "data", to="varying")
        return lax.psum(gradient(convolution, own, x), "data")

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.shard_map(of_part, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    wanted = gradient(lax.conv_general_dilated, kernel, x)
    assert_close([jax.jit(split)(kernel, x)], [wanted], 5e-6)


def test_one_dnn_only_without_a_compilation_cache():
    assert set(compiler_options("cpu")) == {"xla_disable_hlo_passes"}


@pytest.mark.parametrize("case", ["four together", "to fewer", "pointwise"])
def test_float64(case):
    images, kernel, strides, padding = CASES[case]
    settings = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    with jax.enable_x64():
        x, kernel = arrays(images, kernel, jnp.float64)
        ours = values_and_gradients(convolution, x, kernel, settings, compiler_options("cpu"))
        stock = values_and_gradients(lax.conv_general_dilated, x, kernel, settings)
        for got, wanted in zip(ours, stock, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("case", ["four together", "to fewer", "tiny", "pointwise"])
def test_bfloat16_within_its_rounding(case):
    images, kernel, strides, padding = CASES[case]
    settings = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    x, kernel = arrays(images, kernel, jnp.bfloat16)
    ours = values_and_gradients(convolution, x, kernel, settings, compiler_options("cpu"))
    wide = (x.astype(jnp.float32), kernel.astype(jnp.float32))
    exact = values_and_gradients(lax.conv_general_dilated, *wide, settings)
    exact = [value.astype(jnp.bfloat16) for value in exact]
    assert_close(ours, exact, 2**-7)


def test_what_is_not_plain_goes_to_the_stock_one():
    settings = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC}
    # Without dimension numbers lax means NCHW, OIHW.
    for images, kernel, special in (
        ((2, 8, 8, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
        ((2, 8, 8, 4), (3, 3, 4, 6), {"rhs_dilation": (2, 2)}),
        ((2, 4, 8, 7), (6, 4, 3, 3), {"dimension_numbers": None}),
    ):
        arguments = (*arrays(images, kernel), settings | special)
        ours = values_and_gradients(convolution, *arguments)
        stock = values_and_gradients(lax.conv_general_dilated, *arguments)
        for got, wanted in zip(ours, stock, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_batched_over_kernels():
    x, kernels = arrays((2, 6, 6, 32), (3, 3, 3, 32, 33))

    def gradient(function, kernel):
        def loss(kernel):
            return jnp.sum(
                jnp.sin(function(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)) ** 2
            )

        return jax.grad(loss)(kernel)

    together = jax.jit(jax.vmap(functools.partial(gradient, convolution)))(kernels)
    each = jnp.stack([gradient(lax.conv_general_dilated, kernel) for kernel in kernels])
    np.testing.assert_allclose(together, each, atol=1e-5 * float(jnp.abs(each).max()))


def lowered(platforms):
    x, kernel = arrays((2, 8, 8, 40), (3, 3, 40, 33))

    def loss(x, kernel):
        return jnp.sum(convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC) ** 2)

    program = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return export.export(program, platforms=platforms)(x, kernel).mlir_module()


@pytest.mark.parametrize(
    ("platform", "barriers", "products"),
    [("cpu", True, True), ("cuda", False, False), ("tpu", False, False)],
)
def test_the_platform_decides(platform, barriers, products):
    text = lowered([platform])
    assert ("optimization_barrier" in text) is barriers
    assert ("dot_general" in text) is products
    assert "stablehlo.convolution" in text


def test_one_program_for_all_platforms():
    text = lowered(["cpu", "cuda", "tpu"])
    assert "optimization_barrier" in text


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_no_compiler_options_elsewhere(platform):
    assert compiler_options(platform) == {}


def test_barriers_survive_compilation_with_the_options():
    def compiled(options):
        function = jax.jit(lambda x: materialised(x * 2.0) + 1.0, compiler_options=options)
        return function.lower(jnp.ones(8)).compile().as_text() or ""

    assert "opt-barrier" in compiled(compiler_options("cpu"))
    assert "opt-barrier" not in compiled(None)


@pytest.mark.parametrize("axis", [1, 2])
def test_neighbours_are_gathered_by_one_loop(axis):
    gathered = jax.jit(lambda x: models.convolution._neighbours(x, 3, axis))
    text = gathered.lower(jnp.ones((2, 8, 8, 16))).compile().as_text() or ""
    images, loop = (line for line in text[text.index("ENTRY") :].splitlines() if " = " in line)
    assert " parameter(" in images
    assert " fusion(" in loop


def test_materialised_is_the_identity_with_its_gradient():
    x = jnp.arange(3.0)
    y, back = jax.vjp(materialised, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(back(x + 1.0)[0], x + 1.0)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

import pb_jax
from pb_jax import threshold
from tests.float64_reference import binned_density, exact_density, reference

DISTRIBUTIONS = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "half-normal": lambda rng, n: rng.normal(size=n),
    "lognormal 1": lambda rng, n: rng.lognormal(0, 1, n),
    "lognormal 2": lambda rng, n: rng.lognormal(0, 2, n),
    "bimodal": lambda rng, n: np.where(
        rng.random(n) < 0.7, rng.normal(1, 0.2, n), rng.normal(4, 0.3, n)
    ),
    "rare far mode": lambda rng, n: np.where(
        rng.random(n) < 0.93, rng.normal(3, 0.2, n), rng.normal(9, 0.1, n)
    ),
    "uniform": lambda rng, n: rng.random(n),
    "student t3": lambda rng, n: rng.standard_t(3, n),
    "half zeros": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.5),
}


def check(values, **options):
    """Threshold and frozen share against float64, as precisely as the method asks."""
    mask = pb_jax.kde_otsu(**options)(values).mask
    estimate = pb_jax.estimate_threshold(values, **options)
    wanted = reference(np.asarray(values.astype(jnp.float32)), **options)
    assert abs(estimate.threshold - wanted.threshold) <= wanted.tolerance(options.get("bins", 300))
    assert abs(1 - np.asarray(mask).mean() - wanted.frozen) <= 0.002
    assert np.allclose(estimate.bandwidth, wanted.bandwidth, rtol=1e-3)
    return estimate, wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [50, 1000, 30_000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equals_float64(name, n, dtype):
    rng = np.random.default_rng(n)
    for _ in range(3 if n == 50 else 1):
        check(jnp.asarray(DISTRIBUTIONS[name](rng, n), dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [200_000, 2_000_000, 20_000_000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equals_float64_on_many_weights(name, n, dtype):
    check(jnp.asarray(DISTRIBUTIONS[name](np.random.default_rng(n), n), dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"coverage": 0.5},
        {"coverage": 1.0},
        {"bins": 17},
        {"bins": 2000},
        {"bandwidth": "silverman"},
        {"bandwidth": 0.3},
        {"scale": 0.5},
    ],
    ids=str,
)
def test_options_equal_float64(options):
    check(jnp.asarray(DISTRIBUTIONS["bimodal"](np.random.default_rng(1), 3000)), **options)


@pytest.mark.real_data
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_gradients_equal_float64(torch_reference, dtype):
    with np.load(torch_reference) as arrays:
        grads = [arrays[name].ravel() for name in arrays.files if name.startswith("grad0/")]
    check(jnp.asarray(np.concatenate(grads), dtype))


def test_the_reference_has_scipys_density():
    sample = np.sort(np.random.default_rng(0).lognormal(size=400))
    kernel = gaussian_kde(sample)
    h = float(np.sqrt(kernel.covariance[0, 0]))
    points = np.linspace(0, sample[-1], 99)
    for density, tolerance in ((exact_density, 1e-12), (binned_density, 1e-6)):
        f = density(sample, np.ones(400), h)
        assert np.allclose(f(points), kernel(points), rtol=tolerance, atol=1e-9)


def test_reported_density_is_scipys():
    sample = np.random.default_rng(0).lognormal(size=400).astype(np.float32)
    estimate = pb_jax.estimate_threshold(jnp.asarray(sample), learning_rate=0.1)
    wanted = gaussian_kde(sample.astype(np.float64) / 0.1)
    assert np.allclose(estimate.density, wanted(np.asarray(estimate.grid)), rtol=2e-3)
    assert estimate.grid[0] == sample.min() / np.float32(0.1)
    assert estimate.grid[-1] > estimate.region[1]


def test_subranges_are_the_region_in_equal_parts():
    values = jnp.asarray(np.random.default_rng(0).exponential(size=5000), jnp.float32)
    estimate = pb_jax.estimate_threshold(values, bins=20)
    lo, hi = np.asarray(estimate.region)
    sample = np.asarray(values)
    sample = sample[(sample >= lo) & (sample <= hi)]
    members, _ = np.histogram(sample, 20, (lo, hi))
    sums, _ = np.histogram(sample, 20, (lo, hi), weights=sample)
    assert np.allclose(estimate.subrange_shares, members / sample.size, atol=1e-7)
    assert np.allclose(estimate.subrange_means, sums / members, rtol=1e-5)
    assert np.isclose(sample.size / 5000, 0.95, atol=1e-3)
    assert np.any(np.isclose(estimate.subrange_means, estimate.threshold))


def leaves_of(values, rng):
    """The same weights, permuted and cut into leaves of odd shapes."""
    values = rng.permutation(values)
    cut = sorted(rng.integers(0, values.size + 1, 3))
    first, second, third, rest = np.split(values, cut)
    return {"a": first, "b": [second[:, None], None], "c": {"d": third[None, None], "e": rest}}


@settings(max_examples=2, deadline=None)  # each has shapes of its own to compile
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(DISTRIBUTIONS)))
def test_neither_order_nor_leaves_change_a_bit(seed, name):
    rng = np.random.default_rng(seed)
    values = DISTRIBUTIONS[name](rng, 257).astype(np.float32)
    whole = pb_jax.estimate_threshold(jnp.asarray(values))
    parts = pb_jax.estimate_threshold(jax.tree.map(jnp.asarray, leaves_of(values, rng)))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sorting_does_not_change_a_bit(name):
    rng = np.random.default_rng(0)
    values = DISTRIBUTIONS[name](rng, 2000).astype(np.float32)
    values[:4] = np.nan, np.inf, 0, 0
    cut = [[values[:700], values[700:].reshape(2, -1)], [values[:0]], [values[:1]], [values[:9]]]
    groups = [[jnp.abs(jnp.asarray(leaf)) for leaf in group] for group in cut]
    method = {"bins": 300, "coverage": 0.95, "method": "scott", "scale": 1.0}
    counted, sorted_ = (
        jax.jit(functools.partial(threshold._estimated, **method, in_order=in_order))(groups, 1.0)
        for in_order in (False, True)
    )
    for one, other in zip(counted, sorted_, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-60, 60), st.floats(1e-6, 1e3))
def test_scale_and_learning_rate_do_not_change_the_mask(seed, exponent, alpha):
    values = jnp.asarray(np.random.default_rng(seed).lognormal(size=300), jnp.float32)
    mask = pb_jax.kde_otsu()(values).mask
    scaled = values * 2.0**exponent
    np.testing.assert_array_equal(pb_jax.kde_otsu()(scaled).mask, mask)
    np.testing.assert_array_equal(pb_jax.kde_otsu(learning_rate=alpha)(values).mask, mask)
    estimate = pb_jax.estimate_threshold(scaled, learning_rate=alpha)
    wanted = pb_jax.estimate_threshold(values).threshold * 2.0**exponent / alpha
    assert np.isclose(estimate.threshold, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "values",
    [[], [0.0, 0.0], [3.0], [2.0, -2.0, 2.0], [np.nan, np.inf, -np.inf], [np.nan, 1.0]],
    ids=str,
)
def test_without_spread_nothing_is_frozen(values):
    values = jnp.asarray(values, jnp.float32)
    assert np.isnan(pb_jax.estimate_threshold(values).threshold)
    assert np.all(pb_jax.kde_otsu()(values).mask)


def test_nonfinite_gradients_do_not_count_and_train():
    rng = np.random.default_rng(0)
    clean = rng.exponential(size=1000).astype(np.float32)
    dirty = np.concatenate([clean, [np.nan, np.inf, -np.inf, 0.0]]).astype(np.float32)
    estimate = pb_jax.estimate_threshold(jnp.asarray(dirty))
    assert estimate.threshold == pb_jax.estimate_threshold(jnp.asarray(clean)).threshold
    counts = (estimate.num_total, estimate.num_zero, estimate.num_nonfinite)
    assert tuple(map(int, counts)) == (1004, 1, 3)
    assert pb_jax.kde_otsu()(jnp.asarray(dirty)).mask[-4:].tolist() == [True, True, True, False]


def test_counts_beyond_float32s_integers():
    n = 2**24 + 3
    values = {"zeros": jnp.zeros(n, jnp.bfloat16), "rest": jnp.arange(1.0, 4.0)}
    estimate = pb_jax.estimate_threshold(values)
    assert int(estimate.num_zero) == n
    assert int(estimate.num_total) == n + 3


def test_works_under_vmap_and_with_a_traced_learning_rate():
    values = jax.random.exponential(jax.random.key(0), (3, 500))
    mapped = jax.vmap(pb_jax.estimate_threshold)(values)
    for i in range(3):
        single = jax.jit(lambda v, a: pb_jax.estimate_threshold(v, learning_rate=a))(values[i], 0.5)
        assert np.isclose(mapped.threshold[i] / 0.5, single.threshold, rtol=1e-6)


def test_no_array_as_large_as_all_gradients_is_built_and_nothing_leaves_the_device():
    leaves = [jnp.zeros(2**20), jnp.zeros(2**20), jnp.zeros(2**20)]
    jaxpr = jax.make_jaxpr(pb_jax.kde_otsu())(leaves)
    sizes, names = [], set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            names.add(equation.primitive.name)
            sizes.extend(variable.aval.size for variable in equation.outvars)
            for parameter in jax.tree.leaves(list(equation.params.values())):
                if hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr"):
                    visit(getattr(parameter, "jaxpr", parameter))

    visit(jaxpr.jaxpr)
    assert max(sizes) < 3 * 2**20
    assert {"fft", "scatter-add", "scan"} <= names, "the walk missed an inner program"
    assert not [name for name in names if "callback" in name]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere kernels are fused whole")
def test_nothing_is_written_between_that_is_much_larger_than_the_gradients():
    gradients = jax.ShapeDtypeStruct((2**24,), jnp.float32)
    compiled = jax.jit(lambda grads: pb_jax.kde_otsu()(grads).mask).lower(gradients).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert needed < 1.5 * 4 * 2**24, "the magnitudes, and what goes through the cache"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 1}, ValueError, "bins must be a whole number at least 2"),
        ({"bins": 2.5}, TypeError, "bins must be a whole number"),
        ({"coverage": 0}, ValueError, "coverage must be a number above 0 and at most 1, got 0"),
        ({"coverage": "all"}, TypeError, "coverage"),
        ({"bandwidth": "scot"}, ValueError, "'scott' or 'silverman' or a number above 0"),
        ({"bandwidth": -1.0}, ValueError, "bandwidth"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a number above 0, got 0.0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        pb_jax.estimate_threshold(jnp.ones(3), **options)
    with pytest.raises(error, match=message):
        pb_jax.kde_otsu(**options)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pb_jax

SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (8, 1), (1, 8), (3, 5, 7), (2, 0, 3), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_is_lossless_and_one_bit_a_weight(shape):
    mask = {"w": jnp.asarray(np.random.default_rng(0).random(shape) < 0.5), "none": None}
    packed = pb_jax.pack_mask(mask)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(packed)) == -(-mask["w"].size // 8)
    unpacked = pb_jax.unpack_mask(packed)
    assert unpacked["none"] is None
    assert unpacked["w"].dtype == bool
    np.testing.assert_array_equal(unpacked["w"], mask["w"])
    assert unpacked["w"].shape == shape


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_packed_bits_are_numpys(bits):
    mask = np.array(bits, bool)
    np.testing.assert_array_equal(pb_jax.pack_mask(jnp.asarray(mask)).bits, np.packbits(mask))


def test_packing_can_be_traced():
    mask = jnp.arange(21).reshape(3, 7) % 2 == 0
    again = jax.jit(lambda m: pb_jax.unpack_mask(pb_jax.pack_mask(m)))(mask)
    np.testing.assert_array_equal(again, mask)


def test_a_packed_leaf_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(9,\) needs 2 bytes, got bits of shape \(1,\)"):
        pb_jax.unpack_mask(pb_jax.PackedLeaf(jnp.zeros(1, jnp.uint8), (9,)))


def test_summary_counts_exactly():
    n = 2**24 + 1
    summary = pb_jax.mask_summary({"a": {"b": jnp.ones(n, bool)}, "c": jnp.zeros(3, bool)})
    assert (summary.size, summary.trainable, summary.frozen) == (n + 3, n, 3)
    assert summary.leaves["a.b"].trainable == n
    assert summary.leaves["c"].frozen_fraction == 1.0
    assert "c" in str(summary)
    assert pb_jax.mask_summary({}).frozen_fraction == 0.0


@pytest.mark.parametrize("wrong", [jnp.ones(3), {"w": 1}, np.arange(2)], ids=str)
@pytest.mark.parametrize(
    "function", [pb_jax.mask_summary, pb_jax.pack_mask, pb_jax.frozen_fraction]
)
def test_masks_that_are_no_masks(function, wrong):
    with pytest.raises(TypeError, match="a mask must hold bool arrays, got"):
        function(wrong)


def test_zero_gradient_fraction_is_the_papers():
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(30, 30)), "b": rng.normal(size=11), "steps": np.zeros(9, int)}
    grads["a"][rng.random((30, 30)) < 0.3] = 0
    total, non_zero = 911, np.count_nonzero(grads["a"]) + 11
    found = pb_jax.zero_gradient_fraction(jax.tree.map(jnp.asarray, grads))
    assert np.isclose(found, (total - non_zero) / total)
    assert pb_jax.zero_gradient_fraction({}) == 0


def test_fractions_count_in_integers():
    n = 2**24 + 3
    assert float(pb_jax.zero_gradient_fraction(jnp.zeros(n, jnp.bfloat16))) == 1.0
    assert float(pb_jax.frozen_fraction(jnp.zeros(n, bool))) == 1.0


def test_leaves_of_one_name_are_all_counted():
    mask = {"a.b": jnp.ones(2, bool), "a": {"b": jnp.zeros(3, bool)}}
    summary = pb_jax.mask_summary(mask)
    assert (summary.size, summary.trainable) == (5, 2)
    assert {name: leaf.size for name, leaf in summary.leaves.items()} == {"a.b": 3, "['a.b']": 2}

import jax
import numpy as np
from sklearn.datasets import load_digits

from pb_jax.data import digits
from pb_jax.data.dataset import content_digest
from pb_jax.data.specs import DIGITS

SPLITS = digits.read()


def test_content_is_the_recorded_one():
    assert {name: content_digest(split) for name, split in SPLITS.items()} == DIGITS.digests
    for name, split in SPLITS.items():
        assert split.images.shape == (DIGITS.geometry.size(name), *DIGITS.geometry.shape)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


def test_both_splits_together_are_scikit_learns_digits():
    """The centre of every 3 x 3 block is the original pixel."""
    data, target = load_digits(return_X_y=True)
    original = np.column_stack([np.floor(np.asarray(data) * 255 / 16 + 0.5), np.asarray(target)])
    images = np.concatenate([split.images for split in SPLITS.values()])
    labels = np.concatenate([split.labels for split in SPLITS.values()])
    ours = np.column_stack([images[:, 3:-3:3, 3:-3:3, 0].reshape(-1, 64), labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], original[np.lexsort(original.T)])


def test_split_is_stratified_and_shuffled():
    np.testing.assert_array_equal(np.bincount(SPLITS["test"].labels), np.full(10, 36))
    assert np.bincount(SPLITS["train"].labels).min() >= 138
    assert len(np.unique(SPLITS["train"].labels[:50])) == 10
    assert len(np.unique(SPLITS["test"].labels[:50])) == 10


def test_enlarge_is_linear_interpolation_in_a_border():
    images = np.random.default_rng(0).integers(0, 17, (6, 8, 8))
    result = digits.enlarge(images)[..., 0].astype(np.float64)
    smooth = jax.image.resize(images.astype(np.float32), (6, 24, 24), "linear") * (255 / 16)
    np.testing.assert_allclose(result[:, 2:-2, 2:-2], smooth, rtol=0, atol=0.501)
    result[:, 2:-2, 2:-2] = 0
    assert not result.any()


def test_constants_are_those_of_the_training_split():
    pixels = SPLITS["train"].images / 255.0
    np.testing.assert_allclose(
        [pixels.mean(), pixels.std()], [*DIGITS.mean, *DIGITS.std], atol=5e-5
    )

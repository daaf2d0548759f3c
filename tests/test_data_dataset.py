import numpy as np

from pb_jax.data.dataset import Split, content_digest

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
LABELS = np.array([1, 2], np.int32)


def test_digest_does_not_depend_on_memory_layout_or_byte_order():
    digest = content_digest(Split(IMAGES, LABELS))
    fortran = Split(np.asfortranarray(IMAGES), LABELS.astype(">i4"))
    assert content_digest(fortran) == digest


def test_digest_depends_on_pixels_labels_and_shape():
    splits = [
        Split(IMAGES, LABELS),
        Split(IMAGES + np.uint8(1), LABELS),
        Split(IMAGES, LABELS[::-1]),
        Split(IMAGES.reshape(2, 4, 3, 1), LABELS),
    ]
    assert len({content_digest(split) for split in splits}) == 4


def test_first_takes_views():
    split = Split(IMAGES, LABELS)
    assert split.first(None).images.base is split.images.base
    first = split.first(1)
    np.testing.assert_array_equal(first.images, IMAGES[:1])
    np.testing.assert_array_equal(first.labels, [1])
    assert np.shares_memory(first.images, IMAGES)

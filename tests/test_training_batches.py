import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pb_jax.training.batches import evaluation_order, training_order


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9), st.integers(1, 9))
def test_training_batches_are_full_and_have_no_example_twice(examples, batch, seed, epoch):
    if batch > examples:
        return
    order = training_order(seed, epoch, examples, batch)
    assert order.shape == (examples // batch, batch)
    assert order.dtype == np.int32
    assert len(set(order.ravel())) == order.size
    assert set(order.ravel()) <= set(range(examples))


@given(st.integers(1, 60), st.integers(1, 60))
def test_evaluation_has_every_example_once(examples, batch):
    order = evaluation_order(examples, batch)
    assert order.shape == (-(-examples // batch), batch)
    kept = order[order >= 0]
    np.testing.assert_array_equal(np.sort(kept), np.arange(examples))


def test_the_order_depends_on_seed_and_epoch_alone():
    one = training_order(1, 2, 1000, 10)
    np.testing.assert_array_equal(one, training_order(1, 2, 1000, 10))
    for other in ((1, 3), (2, 2), (2, 1)):
        assert (one != training_order(*other, 1000, 10)).mean() > 0.9


def test_what_is_left_out_changes():
    kept = [set(training_order(0, epoch, 25, 10).ravel()) for epoch in (1, 2, 3)]
    assert kept[0] != kept[1] or kept[1] != kept[2]

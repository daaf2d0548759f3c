"""Small leaves end to end: the same updates, and each leaf's own state back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pb_jax.training import compact, optimizers
from pb_jax.training.mesh import Placement
from pb_jax.training.small_leaves import EntryWise, join, join_state, joined, part, part_state
from pb_jax.training.step import Steps, Totals
from tests.test_training_compact import HALF, Trained, assert_nearly, assert_same_bits
from tests.tiny_training import tiny_task

SIZES = {"bias": (5,), "kernel": (3, 4), "large": (130, 127), "scale": ()}


def tree(seed, shapes=SIZES, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def shapes_of(arrays):
    return jax.eval_shape(lambda tree: tree, arrays)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("abc/", min_size=1, max_size=4),
        st.tuples(
            st.sampled_from([(0,), (1,), (7,), (3, 2), (), (2, 1, 3), (128, 129)]),
            st.sampled_from(["float32", "float16", "int32"]),
        ),
        max_size=6,
    )
)
def test_joined_and_parted_again(wanted):
    found = {
        name: jnp.asarray(np.arange(np.prod(shape)).reshape(shape), dtype)
        for name, (shape, dtype) in wanted.items()
    }
    end_to_end = join(found)
    assert_same_bits(part(end_to_end, shapes_of(found)), found)
    small = [leaf for leaf in found.values() if leaf.size < 128 * 129]
    assert len(end_to_end) == len(found) - len(small) + len({leaf.dtype for leaf in small})
    assert sum(leaf.size for leaf in end_to_end.values()) == sum(x.size for x in found.values())


def test_what_is_no_array_stays():
    found = {"a": jnp.ones(2), "b": optax.MaskedNode(), "c": jnp.ones(3)}
    assert join(found)["b"] == optax.MaskedNode()
    assert_same_bits(part(join(found), found), found)


MAKERS = {
    **{name: lambda name=name: optimizers.create(name, 1e-2) for name in optimizers.NAMES},
    "decayed": lambda: optimizers.create("adamw", lambda count: 0.1 / (1 + count)),
    "nesterov": lambda: optimizers.create("sgd", 0.1, momentum=0.9, nesterov=True),
    "adjustable": lambda: optimizers.adjustable("amsgrad_torch", 1e-2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_updates_of_each_leaf_by_itself(name):
    optimizer = MAKERS[name]()
    assert isinstance(optimizer, EntryWise)
    params, together = tree(0), joined(optimizer)
    state = optimizer.init(params)
    updates, state = optimizer.update(tree(1), state, params)
    end_to_end = join_state(optimizer, state)
    assert_same_bits(part_state(optimizer, end_to_end, shapes_of(params)), state)
    assert kinds(together.init(params)) == kinds(end_to_end)
    for seed in (2, 3):
        updates, state = optimizer.update(tree(seed), state, params)
        others, end_to_end = together.update(tree(seed), end_to_end, params)
        assert_nearly(others, updates)
    assert_nearly(part_state(optimizer, end_to_end, shapes_of(params)), state)


def kinds(state):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@pytest.fixture(scope="module")
def half():
    run = Trained(HALF, optimizers.create("amsgrad_torch", 1e-2), compact=True)
    return run, run.steps.compacted(run.masked)[0]


def test_a_compact_step(half):
    run, small = half
    end_to_end = run.steps.joined(small)
    assert compact.is_joined(end_to_end.opt_state)
    assert not compact.is_joined(small.opt_state)
    (moment,) = jax.tree.leaves(optax.tree.get(end_to_end.opt_state, "nu_max"))
    assert moment.size == compact.trainable(small.opt_state)
    (state, totals), (wanted, other) = run.some(end_to_end), run.some(small)
    state = run.steps.parted(state)
    assert_nearly((state.params, state.opt_state), (wanted.params, wanted.opt_state))
    assert float(totals.zeros) == float(other.zeros)
    assert_same_bits(run.steps.parted(run.steps.joined(wanted)), wanted)


def test_one_operation_for_all_leaves(half):
    run, small = half
    programs = [
        str(jax.make_jaxpr(run.steps.train)(state, Totals.empty(), *run.rest))
        for state in (small, run.steps.joined(small))
    ]
    separate, together = (text.count("= sqrt ") for text in programs)
    others = together - 1  # of the loss and of batch normalisation
    assert separate == others + len(small.params) - 1, "the stem's bias is frozen"


def test_other_optimizers_keep_their_leaves():
    """A norm over a leaf is another for leaves that are end to end."""
    optimizer = optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1, momentum=0.9))
    run = Trained(HALF, optimizer, compact=True)
    small, note = run.steps.compacted(run.masked)
    assert note.startswith("optimizer state compacted")
    assert run.steps.joined(small) is small
    assert run.steps.joined(run.masked) is run.masked, "nor does a dense state"


def test_on_several_devices_leaves_stay(half):
    _, small = half
    optimizer = optimizers.create("amsgrad_torch", 1e-2)
    steps = Steps(tiny_task(), optimizer, None, Placement(data=1))
    assert steps.joined(small) is small

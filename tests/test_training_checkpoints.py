from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pb_jax.errors import UserError
from pb_jax.training.checkpoints import Checkpoints


class Inner(NamedTuple):
    mask: dict
    nothing: tuple


class Outer(NamedTuple):
    key: jax.Array
    inner: Inner
    empty: Inner


def state(seed):
    mask = {"a.b": jnp.arange(5) % 2 == seed % 2, "c": jnp.full((2, 3), seed, jnp.bfloat16)}
    return Outer(jax.random.key(seed), Inner(mask, ()), Inner({}, ()))


def save(folder, accuracies, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for epoch, accuracy in enumerate(accuracies, 1):
        checkpoints.save(state(epoch), {"epoch": epoch, "val_accuracy": accuracy})
    checkpoints.close()


def test_what_comes_back_is_what_was_saved(tmp_path):
    save(tmp_path / "c", [0.1, 0.2])
    restored = Checkpoints(tmp_path / "c").restore(state(0))
    assert restored is not None
    found, record = restored
    assert record == {"epoch": 2, "val_accuracy": 0.2}
    assert jax.tree.structure(found) == jax.tree.structure(state(2))
    assert found.inner.mask["c"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, found.inner, state(2).inner)
    assert jax.random.key_impl(found.key) == jax.random.key_impl(state(2).key)
    np.testing.assert_array_equal(jax.random.key_data(found.key), jax.random.key_data(state(2).key))


def test_nothing_there(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(state(0)) is None


@pytest.mark.parametrize(
    ("accuracies", "keep", "kept"),
    [
        ([0.1, 0.9, 0.2, 0.3], 1, [2, 4]),
        ([0.1, 0.9, 0.2, 0.3], 2, [2, 3, 4]),
        ([0.5, 0.5, 0.5], 1, [1, 3]),  # of equals the first is the best
        ([0.1, 0.2, 0.3], 1, [3]),
    ],
)
def test_the_latest_and_the_best_stay(tmp_path, accuracies, keep, kept):
    save(tmp_path / "c", accuracies, keep)
    assert Checkpoints(tmp_path / "c", keep).epochs() == kept


def damage(folder):
    """Cut every file of arrays short."""
    files = [p for p in (folder / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path):
    save(tmp_path / "c", [0.1, 0.2, 0.3])
    damage(tmp_path / "c" / "3")
    said = []
    checkpoints = Checkpoints(tmp_path / "c", warn=said.append)
    restored = checkpoints.restore(state(0))
    assert restored is not None
    assert restored[1]["epoch"] == 2
    text = "\n".join(said)
    assert "WARNING: damaged checkpoint" in text
    assert str(tmp_path / "c" / "3") in text
    assert "epoch 2" in text
    assert (tmp_path / "c_damaged" / "3").is_dir()
    checkpoints.save(state(3), {"epoch": 3, "val_accuracy": 0.3})  # its place is free
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").epochs() == [2, 3]


def test_only_damaged_checkpoints(tmp_path):
    save(tmp_path / "c", [0.1, 0.2])
    for epoch in (1, 2):
        damage(tmp_path / "c" / str(epoch))
    with pytest.raises(UserError, match="no checkpoint of this run can be read") as caught:
        Checkpoints(tmp_path / "c").restore(state(0))
    assert str(tmp_path / "c" / "1") in str(caught.value)
    assert (tmp_path / "c" / "2").is_dir()  # nothing was moved


def test_half_written_checkpoints_do_not_count(tmp_path):
    save(tmp_path / "c", [0.1])
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.epochs() == [1]
    checkpoints.save(state(2), {"epoch": 2, "val_accuracy": 0.3})
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").epochs() == [1, 2]

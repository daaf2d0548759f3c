"""Checkpoints of compact states: the same bits, fewer bytes, never without their base."""

import contextlib
import functools
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import pb_jax
from pb_jax.errors import UserError
from pb_jax.training import delta, read_model, stored
from pb_jax.training.checkpoints import Checkpoints
from pb_jax.training.step import TrainState
from tests.tiny_training import (
    assert_same_run,
    saved_epochs,
    tiny_fit,
    tiny_freezing,
)

OPTIMIZER = optax.inject_hyperparams(optax.amsgrad)(learning_rate=1e-3)


@functools.cache
def dense_state(seed=0, side=6):
    """With values that plain arithmetic would not keep; made without compiling much."""
    rng = np.random.default_rng(seed)

    def noise(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf + 7
        return jnp.array(rng.standard_normal(leaf.shape), leaf.dtype)

    shapes = {"some": (side, side), "none": (3, 5), "all": (side,), "one": (), "few": (17,)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    params["few"] = params["few"].astype(jnp.bfloat16)
    opt_state = pb_jax.PartialBackpropState(
        count=jnp.int32(1),
        mask={name: jnp.array(np.ones(shape, bool)) for name, shape in shapes.items()},
        threshold=jnp.float32(jnp.nan),
        inner_state=jax.tree.map(noise, OPTIMIZER.init(params)),
    )
    params = jax.tree.map(noise, params)
    odd = np.array(params["none"])
    odd[0, :3] = [-0.0, np.nan, np.inf]
    params["none"] = jnp.array(odd)
    key = jax.random.key(seed, impl="rbg")
    model_state = {"norm.mean": jnp.array(rng.random(3, np.float32)), "drop.key": key}
    return TrainState(jnp.int32(1), params, model_state, opt_state)


def mask_of(params, seed=0, frozen=0.8):
    rng = np.random.default_rng(seed)
    mask = {name: rng.random(leaf.shape) >= frozen for name, leaf in params.items()}
    mask |= {"none": np.zeros((3, 5), bool), "all": np.ones(params["all"].shape, bool)}
    mask |= {"one": np.asarray(False)}
    mask["few"][:2] = [True, False]
    return mask


def compacted(state, mask):
    dense = state.opt_state.inner_state
    inner = pb_jax.compact_state(OPTIMIZER, dense, mask, state.params, check=False)
    opt_state = state.opt_state._replace(mask=None, threshold=jnp.float32(0.25), inner_state=inner)
    return state._replace(opt_state=opt_state)


@functools.cache
def compact_state(seed=0, mask_seed=0):
    state = dense_state(seed)
    return compacted(state, mask_of(state.params, mask_seed))


def bits(state):
    """Every array of a state as it lies in memory."""
    flat = {name: np.asarray(array) for name, array in stored.flat(state).items()}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in flat.items()}


def record(epoch, score=0.5):
    return {"epoch": epoch, "val_accuracy": score}


def save(folder, *states, keep=5, first=1):
    checkpoints = Checkpoints(folder, keep=keep)
    for epoch, state in enumerate(states, first):
        checkpoints.save(state, record(epoch))
    checkpoints.close()


def restore(folder, **options):
    checkpoints = Checkpoints(folder, **options)
    try:
        return checkpoints.restore(dense_state(9))
    finally:
        checkpoints.close()


def bases(folder):
    return sorted((folder / "base").iterdir())


def moved(state):
    """What trains has trained: `state` after an update under its mask."""
    inner = state.opt_state.inner_state
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), state.params)
    params, inner = pb_jax.apply_compact(OPTIMIZER, grads, inner, state.params)
    opt_state = state.opt_state._replace(inner_state=inner)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def test_restored_to_the_bit(tmp_path):
    state = compact_state()
    save(tmp_path, state)
    found, line = restore(tmp_path)
    assert line == record(1)
    assert bits(found) == bits(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    inner = found.opt_state.inner_state
    assert inner.indices["some"].dtype == jnp.int32
    assert inner.indices["none"] == optax.MaskedNode()
    assert inner.indices["all"] is None
    assert jax.random.key_impl(found.model_state["drop.key"]) == "rbg"
    assert bits(moved(found)) == bits(moved(state))


def test_only_what_trains_is_in_it(tmp_path):
    state = compact_state()
    save(tmp_path, state)
    found = stored.arrays(tmp_path / "1")
    trains = int(jnp.size(state.opt_state.inner_state.indices["some"]))
    assert found["params.some"].shape == (trains,)
    assert found["opt_state.inner_state.mask.some.bits"].shape == (5,)
    assert not [name for name in found if "indices" in name or name.endswith("params.none")]
    frozen = safetensors.numpy.load_file(bases(tmp_path)[0])
    assert {name: leaf.size for name, leaf in frozen.items()} == {
        "some": 36 - trains,
        "none": 15,
        "one": 1,
        "few": 17 - int(jnp.size(state.opt_state.inner_state.indices["few"])),
    }


def test_forms_may_take_turns(tmp_path):
    """Full, compact, another mask, full again: as training, freezing, refreshing, stopping."""
    states = [dense_state(1), compact_state(2), compact_state(3, mask_seed=1), dense_state(4)]
    save(tmp_path, *states)
    assert [stored.is_delta(tmp_path / str(e)) for e in (1, 2, 3, 4)] == [False, True, True, False]
    assert len(bases(tmp_path)) == 2
    for epoch in (4, 3, 2, 1):
        found, line = restore(tmp_path)
        assert line["epoch"] == epoch
        assert bits(found) == bits(states[epoch - 1])
        shutil.rmtree(tmp_path / str(epoch))
    assert bases(tmp_path) == []


def test_one_base_for_one_mask_also_after_a_resumption(tmp_path):
    states = [compact_state()]
    for _ in range(3):
        states.append(moved(states[-1]))
    save(tmp_path, *states[:2])
    [base] = bases(tmp_path)
    written = base.stat().st_mtime_ns
    found, _ = restore(tmp_path)
    save(tmp_path, moved(found), states[3], first=3)
    assert bases(tmp_path) == [base]
    assert base.stat().st_mtime_ns == written
    assert bits(restore(tmp_path)[0]) == bits(states[3])


def test_bases_go_with_their_last_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(compact_state(1), record(1, 0.1))
    first = bases(tmp_path)
    for epoch in (2, 3):
        checkpoints.save(compact_state(2), record(epoch, 0.1 * epoch))
    (tmp_path / "base" / ".1234.safetensors.77.part").write_bytes(b"half")
    checkpoints.save(compact_state(3), record(4, 0.4))
    checkpoints.close()
    assert checkpoints.folder == tmp_path
    assert stored.epochs(tmp_path) == [4]
    [last] = bases(tmp_path)
    assert last not in first
    assert bits(restore(tmp_path)[0]) == bits(compact_state(3))


def test_at_no_moment_is_a_checkpoint_without_its_base(tmp_path, monkeypatch):
    """Looked at before and after every step of saving, while orbax writes and removes as well."""
    looks = []

    def look():
        found = []
        for epoch in stored.epochs(tmp_path):
            with contextlib.suppress(FileNotFoundError):  # it is being removed
                found.append(stored.item(tmp_path / str(epoch), stored.DELTA)["base"])
        looks.append([delta.Bases(tmp_path).read(base) for base in found])

    def watched(owner, name):
        inner = getattr(owner, name)

        def call(*args, **kwargs):
            look()
            result = inner(*args, **kwargs)
            look()
            return result

        monkeypatch.setattr(owner, name, call)

    save(tmp_path, dense_state(1), compact_state(1), keep=1)
    checkpoints = Checkpoints(tmp_path, keep=1)
    watched(delta.Bases, "write")
    watched(delta.Bases, "keep")
    watched(checkpoints._manager, "save")
    for epoch in (3, 4, 5):
        checkpoints.save(compact_state(epoch, mask_seed=epoch), record(epoch))
        checkpoints.wait()
        look()
    assert len(looks) == 3 * 7
    assert all(looks), "one checkpoint at least, at any time"
    checkpoints.close()
    assert len(bases(tmp_path)) == 1


def alter(base):
    content = bytearray(base.read_bytes())
    content[-1] ^= 1
    base.write_bytes(content)


def cut(base):
    base.write_bytes(base.read_bytes()[:-4])


def remove(base):
    base.unlink()


@pytest.mark.parametrize(
    ("harm", "said"), [(remove, "is missing"), (alter, "was altered"), (cut, "cannot be read")]
)
def test_without_its_base_a_checkpoint_is_refused(tmp_path, harm, said):
    folder = tmp_path / "c"
    state = compact_state()
    save(folder, state)
    [base] = bases(folder)
    kept = base.read_bytes()
    harm(base)
    digest = stored.item(folder / "1", stored.DELTA)["base"]["sha256"]
    with pytest.raises(UserError, match=said) as caught:
        restore(folder)
    message = str(caught.value)
    assert str(base) in message
    assert f"put back the file of fingerprint {digest[:12]}…" in message
    if harm is alter:
        other = delta.fingerprint(safetensors.numpy.load_file(base))
        assert f"its fingerprint is {other[:12]}…, not {digest[:12]}…" in message
    with pytest.raises(UserError, match=said):
        read_model(folder, 1, state.params, state.model_state)
    base.write_bytes(kept)
    assert bits(restore(folder)[0]) == bits(state)


def test_an_older_full_checkpoint_takes_over(tmp_path):
    folder, said = tmp_path / "c", []
    full = dense_state(1)
    save(folder, full, compact_state(2))
    [base] = bases(folder)
    alter(base)
    found, line = restore(folder, warn=said.append)
    assert line["epoch"] == 1
    assert bits(found) == bits(full)
    text = "\n".join(said)
    assert "WARNING: damaged checkpoint, set aside" in text
    assert str(base) in text
    assert (tmp_path / "c_damaged" / "2").is_dir()
    save(folder, compact_state(2), first=2)  # the altered base is written again
    assert bits(restore(folder)[0]) == bits(compact_state(2))


def test_an_altered_base_is_not_built_upon(tmp_path):
    state = compact_state()
    save(tmp_path, state)
    alter(bases(tmp_path)[0])
    save(tmp_path, moved(state), first=2)
    assert bits(restore(tmp_path)[0]) == bits(moved(state))


def test_a_damaged_delta_is_passed_over(tmp_path):
    folder, said = tmp_path / "c", []
    save(folder, compact_state(), moved(compact_state()))
    for path in (folder / "2" / "state").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, line = restore(folder, warn=said.append)
    assert line["epoch"] == 1
    assert bits(found) == bits(compact_state())
    assert "going on from the one before, of epoch 1" in said[-1]
    assert len(bases(folder)) == 1


def test_a_checkpoint_that_names_no_base_keeps_all(tmp_path):
    save(tmp_path, compact_state(1), compact_state(2, 1))
    (tmp_path / "1" / "delta" / "metadata").write_text("{")
    Checkpoints(tmp_path).close()
    assert len(bases(tmp_path)) == 2


def test_another_optimizer_or_model_is_refused(tmp_path):
    state = compact_state()
    save(tmp_path, state)
    inner = optax.sgd(0.1).init(state.params)
    other = dense_state()
    other = other._replace(opt_state=other.opt_state._replace(inner_state=inner))
    with pytest.raises(UserError, match="is of another optimizer"):
        Checkpoints(tmp_path).restore(other)
    other = dense_state(side=7)
    with pytest.raises(UserError, match="all is of another model"):
        Checkpoints(tmp_path).restore(other)


@pytest.mark.parametrize("make", [dense_state, compact_state])
def test_the_model_alone(tmp_path, make):
    state = make(3)
    save(tmp_path, state)
    like = dense_state(5)
    params, model_state = read_model(tmp_path, 1, like.params, like.model_state)
    assert bits((params, model_state)) == bits((state.params, state.model_state))
    with pytest.raises(UserError, match="of another model: float32"):
        read_model(tmp_path, 1, like.params | {"all": jnp.ones(2)}, like.model_state)
    with pytest.raises(UserError, match=r"of another model: no params\.new"):
        read_model(tmp_path, 1, like.params | {"new": jnp.ones(2)}, like.model_state)
    with pytest.raises(UserError, match="cannot be read"):
        read_model(tmp_path, 2, like.params, like.model_state)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    state = jax.tree.map(lambda leaf: leaf.copy(), compact_state())
    wanted = bits(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, record(1))
    plain = state._replace(model_state={})
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 1, s), donate_argnums=0)
    jax.block_until_ready(step(plain))
    assert state.params["some"].is_deleted()
    checkpoints.close()
    assert bits(restore(tmp_path)[0]) == wanted


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("frozen", "most"), [(0.8, 0.30), (0.5, 0.58), (0.95, 0.10)])
def test_bytes_of_the_files(tmp_path, frozen, most):
    """A million weights; a base is written once, so it is not counted with each checkpoint."""
    full = dense_state(side=1000)
    save(tmp_path, full, compacted(full, mask_of(full.params, frozen=frozen)))
    assert size_of(tmp_path / "2") <= most * size_of(tmp_path / "1")
    [base] = bases(tmp_path)
    assert base.stat().st_size <= frozen * 4.05e6


def test_fingerprints_see_everything():
    one = {"a": np.arange(3, dtype=np.float32), "b": np.zeros(2, np.float32)}
    others = [
        one | {"a": np.arange(3, dtype=np.float32)[::-1]},
        one | {"a": np.arange(3, dtype=np.int32).view(np.float32)},
        one | {"b": np.zeros(2, np.int32)},
        one | {"b": -np.zeros(2, np.float32)},
        {"a": one["a"], "c": one["b"]},
        {"a": one["a"]},
    ]
    digests = {delta.fingerprint(frozen) for frozen in [one, *others]}
    assert len(digests) == len(others) + 1
    assert delta.fingerprint(dict(reversed(one.items()))) == delta.fingerprint(one)
    content = b"a float32 3\n" + one["a"].tobytes() + b"b float32 2\n" + bytes(8)
    assert delta.fingerprint(one) == hashlib.sha256(content).hexdigest()


def test_what_a_checkpoint_says_of_its_base(tmp_path):
    save(tmp_path, compact_state())
    about = json.loads((tmp_path / "1" / "delta" / "metadata").read_text())
    assert about["base"]["file"] == bases(tmp_path)[0].name
    assert about["base"]["file"].startswith(about["base"]["sha256"][:16])
    assert about["params"]["few"] == {"shape": [17], "dtype": "bfloat16"}


# ----------------------------------------------------------------------------------------------
# Whole runs.
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to; its mask is made in epoch 3."""
    workdir = tmp_path_factory.mktemp("whole")
    tiny_fit(workdir, 5, freezing=tiny_freezing(compact=True), keep=5)
    return workdir


class Killed(BaseException):
    pass


def die(*_):
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write", "keep"])
def test_killed_while_the_first_base_is_written(whole, tmp_path, monkeypatch, step):
    options = {"freezing": tiny_freezing(compact=True), "keep": 5}
    tiny_fit(tmp_path, 2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(delta.Bases, step, die)
        with pytest.raises(Killed):
            tiny_fit(tmp_path, 5, **options)
    assert saved_epochs(tmp_path) == [1, 2]
    tiny_fit(tmp_path, 5, **options)
    assert_same_run(tmp_path, whole, 5)
    assert [base.name for base in bases(tmp_path / "checkpoints")] == [
        base.name for base in bases(whole / "checkpoints")
    ]


@pytest.mark.slow
def test_a_run_without_its_base_goes_back_to_full_training(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    [base] = bases(workdir / "checkpoints")
    base.unlink()
    options = {"freezing": tiny_freezing(compact=True), "keep": 5}
    tiny_fit(workdir, 5, **options)
    printed = (workdir / "printed.txt").read_text()
    assert f"{base} is missing" in printed
    assert "going on from the one before, of epoch 2" in printed
    assert_same_run(workdir, whole, 5)
    [again] = bases(workdir / "checkpoints")
    assert again.name == base.name

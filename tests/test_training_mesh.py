import jax
import numpy as np
import optax
import pytest

import pb_jax
from pb_jax.errors import UserError
from pb_jax.training import stored
from pb_jax.training.mesh import Placement
from tests.tiny_training import (
    assert_same_run,
    lines,
    saved_state,
    tiny_fit,
    tiny_freezing,
    tiny_schedule,
)

BATCH = 16  # of 83 examples: five steps, which 2, 4 and 8 devices can share


def mesh_fit(workdir, epochs, data=1, fsdp=1, **options):
    """A run that several devices share; data and fsdp of 1: of one device, without a mesh."""
    rule = pb_jax.kde_otsu(learning_rate=1e-2)
    freezing = {"start_epoch": 2, "steps_per_epoch": 83 // BATCH, "rule": rule}
    return tiny_fit(
        workdir,
        epochs,
        batch_size=BATCH,
        stem_bias=False,
        # Without Adam rounding stays rounding.
        optimizer=optax.sgd(tiny_schedule(), momentum=0.9),
        freezing=tiny_freezing(**freezing | options.pop("freezing", {})),
        placement=None if data * fsdp == 1 else Placement(data, fsdp),
        **options,
    )


def assert_close_runs(one, other, epoch, rtol=2e-4):
    """The same curve and state within float tolerance, and the same masks."""
    for first, second in zip(lines(one), lines(other), strict=True):
        keys = [k for k in first if first[k] is not None]
        wanted = {key: first[key] for key in keys}
        assert {key: second[key] for key in keys} == pytest.approx(wanted, rel=rtol, abs=1e-6)
    first, second = saved_state(one, epoch), saved_state(other, epoch)
    assert first.keys() == second.keys()
    for name, array in first.items():
        array, found = np.asarray(array), np.asarray(second[name])
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found, array, rtol=rtol, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found, array, err_msg=name)


@pytest.mark.slow
def test_batch_and_parameters_are_split_and_the_run_is_the_same(tmp_path):
    mesh_fit(tmp_path / "one", 2)
    mesh_fit(tmp_path / "2x2", 2, data=2, fsdp=2)
    assert_close_runs(tmp_path / "one", tmp_path / "2x2", 2)
    assert lines(tmp_path / "2x2")[-1]["frozen_fraction"] > 0.3


@pytest.mark.slow
def test_a_mesh_of_one_device_makes_the_same_bits(tmp_path):
    tiny_fit(tmp_path / "plain", 3)
    tiny_fit(tmp_path / "mesh", 3, placement=Placement())
    assert_same_run(tmp_path / "plain", tmp_path / "mesh", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freezing", "ways"),
    [
        ({"compact": False}, [(8, 1, False), (8, 1, True), (4, 2, False), (1, 8, True)]),
        ({"compact": True}, [(8, 1, False), (2, 1, True)]),
        # Other batches are judged than those of a step, masks made again and given up.
        ({"batches": 2, "batch_size": 24, "refresh_epochs": 2, "stop_epoch": 5}, [(4, 2, False)]),
    ],
)
def test_every_way_over_eight_devices_makes_the_same_run(tmp_path, freezing, ways):
    mesh_fit(tmp_path / "one", 5, freezing=freezing)
    for data, fsdp, scan in ways:
        name = f"{data}x{fsdp}{scan}"
        mesh_fit(tmp_path / name, 5, data, fsdp, scan=scan, freezing=freezing)
        assert_close_runs(tmp_path / "one", tmp_path / name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("compact", [False, True])
def test_a_run_is_resumed_on_other_devices(tmp_path, compact):
    freezing = {"compact": None if compact else False}
    ways = [(1, 1), (4, 2), (8, 1), (2, 1), (1, 1), (2, 2)]
    for epochs, (data, fsdp) in enumerate(ways, 1):
        mesh_fit(tmp_path / "moved", epochs, data, fsdp, freezing=freezing)
    mesh_fit(tmp_path / "stayed", len(ways), freezing=freezing)
    one, other = (lines(tmp_path / name) for name in ("stayed", "moved"))
    for first, second in zip(one, other, strict=True):
        assert first["val_loss"] == pytest.approx(second["val_loss"], rel=2e-4)
        assert first["frozen_fraction"] == second["frozen_fraction"]


def test_what_a_device_holds():
    placement = Placement(2, 4)
    tree = {
        "square": np.arange(64 * 64.0).reshape(64, 64),
        "kernel": np.zeros((3, 3, 16, 32)),
        "odd": np.zeros((33, 65)),
        "short": np.zeros(16),
        "key": jax.random.key(3),
    }
    placed = placement.place(tree)
    held = {k: stored.plain(a).addressable_shards[0].data.shape for k, a in placed.items()}
    assert held == {
        "square": (64, 16),
        "kernel": (3, 3, 16, 8),
        "odd": (33, 65),
        "short": (16,),
        "key": (2,),
    }
    back = placement.local(placed)
    assert all(len(leaf.devices()) == 1 for leaf in back.values())
    np.testing.assert_array_equal(back["square"], tree["square"])
    assert jax.random.key_data(back["key"]).tolist() == [0, 3]


def test_each_device_gets_its_part_of_every_batch():
    placement = Placement(4, 2)
    rows, asked = np.arange(3 * 16).reshape(3, 16), []

    def read(part):
        asked.append(part.shape)
        return {"twice": part * 2, "wide": np.repeat(part[..., None], 5, -1)}

    found = placement.batches(rows, read)
    assert asked == [(3, 2)] * 8
    np.testing.assert_array_equal(found["twice"], rows * 2)
    assert found["wide"].shape == (3, 16, 5)
    assert found["wide"].addressable_shards[0].data.shape == (3, 2, 5)


def test_a_mesh_needs_its_devices():
    with pytest.raises(UserError, match=r"mesh.data=8 and mesh.fsdp=2 ask for 16 devices; there a"):
        Placement(8, 2)
    with pytest.raises(UserError, match="JAX_NUM_CPU_DEVICES"):
        Placement(9)


def test_a_batch_has_to_be_split_evenly(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=10 cannot be split over the 8.*8 and 16 can"):
        tiny_fit(tmp_path, 1, placement=Placement(8))

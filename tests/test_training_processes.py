import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from pb_jax.errors import UserError
from pb_jax.training import processes, resolve
from pb_jax.training.checkpoints import Checkpoints
from tests.tiny_training import lines, saved_epochs

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 8
CONFIG = {
    "epochs": EPOCHS,
    "batch_size": 48,
    "dataset.limit_train": 288,
    "dataset.limit_eval": 100,
    # Without Adam, and before the loss falls steeply, rounding stays rounding.
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "checkpoint.every_epochs": 1,
}


def start(workdir: Path, log: Path, devices: int, **config):
    """`train.py` with so many devices of its own."""
    return launch(
        [
            *(sys.executable, "train.py", "--config=configs/digits_pb.py", f"--workdir={workdir}"),
            *(f"--config.{key}={value}" for key, value in {**CONFIG, **config}.items()),
        ],
        log,
        devices,
        JAX_COMPILATION_CACHE_DIR=str(workdir.parent / "xla"),
    )


def launch(command, log: Path, devices: int, **environment: str):
    there = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    with log.open("w") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **there, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextlib.contextmanager
def two(workdir: Path, devices: int = 2, **config):
    """Two processes that train together on four devices; those that go on at the end are killed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    together = {
        "distributed": True,
        "processes.coordinator": f"127.0.0.1:{port}",
        "processes.count": 2,
        "mesh.data": 2 * devices,
    }
    running = [
        start(
            workdir,
            log_of(workdir, index),
            devices,
            **{"processes.index": index, **together, **config},
        )
        for index in range(2)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def log_of(workdir: Path, index: int) -> Path:
    return workdir.with_name(f"{workdir.name}.{index}.log")


def alone(workdir: Path, devices: int = 1, **config) -> None:
    log = log_of(workdir, 0)
    assert start(workdir, log, devices, **config).wait(600) == 0, log.read_text()


def assert_same_curve(one: Path, other: Path, epochs: int) -> None:
    first, second = lines(one), lines(other)
    assert len(first) == len(second) == epochs
    for here, there in zip(first, second, strict=True):
        for key in ("epoch", "step", "frozen_fraction", "learning_rate"):
            assert here[key] == there[key], (here["epoch"], key)
        for key in ("train_loss", "val_loss"):
            assert here[key] == pytest.approx(there[key], rel=1e-5), (here["epoch"], key)
    assert first[-1]["threshold"] == pytest.approx(second[-1]["threshold"], rel=1e-3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of one process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    alone(workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [
        {},
        {"mesh.data": 2, "mesh.fsdp": 2},
    ],
)
def test_two_processes_end_with_the_run_of_one(tmp_path, undisturbed, split):
    workdir = tmp_path / "run"
    with two(workdir, **split) as running:
        assert [process.wait(600) for process in running] == [0, 0], log_of(workdir, 0).read_text()
    assert_same_curve(undisturbed, workdir, EPOCHS)
    assert (workdir / "summary.json").exists()
    assert (workdir / "figures" / "curves.png").exists()
    assert json.loads((workdir / "config.json").read_text())["processes"]["index"] == 0
    # Only the first says something, apart from what the libraries print.
    assert "epoch 3/8" in log_of(workdir, 0).read_text()
    assert "epoch" not in log_of(workdir, 1).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_dies_the_others_end_and_the_run_is_resumed(tmp_path, undisturbed, killed):
    workdir = tmp_path / "run"
    with two(workdir) as running:
        deadline = time.monotonic() + 300
        while len(lines(workdir)) < 4:  # after the mask, with a compact state
            assert time.monotonic() < deadline, log_of(workdir, 0).read_text()
            assert running[0].poll() is running[1].poll() is None
            time.sleep(0.05)
        running[killed].send_signal(signal.SIGKILL)
        died = time.monotonic()
        status = running[1 - killed].wait(60)
        print(f"the other ended after {time.monotonic() - died:.1f} s with status {status}")
        # JAX ends a process when the first is gone, and says much: that may come before ours.
        said = log_of(workdir, 1 - killed).read_text()
        assert status == 3 or killed == 0
        assert status != 0
        assert "error: another process of this run has ended" in said or "another task died" in said
    assert len(lines(workdir)) < EPOCHS, "it was killed too late"
    assert saved_epochs(workdir)
    if killed == 0:
        with two(workdir, devices=1) as running:
            assert [process.wait(600) for process in running] == [0, 0]
    else:
        alone(workdir, devices=3, **{"mesh.data": 3})
    assert "resuming after epoch" in log_of(workdir, 0).read_text()
    assert_same_curve(undisturbed, workdir, EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_one_and_the_others_follow(tmp_path, number, status):
    workdir = tmp_path / "run"
    with two(workdir, devices=1, epochs=500) as running:
        deadline = time.monotonic() + 300
        while len(lines(workdir)) < 2:
            assert time.monotonic() < deadline, log_of(workdir, 0).read_text()
            time.sleep(0.05)
        running[1].send_signal(number)
        assert running[1].wait(30) == status
        assert running[0].wait(60) != 0


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A run of two processes that each have a part of each parameter."""
    workdir = tmp_path_factory.mktemp("divided") / "run"
    with two(workdir, devices=1, **DIVIDED) as running:
        assert [process.wait(600) for process in running] == [0, 0], log_of(workdir, 0).read_text()
    return workdir


DIVIDED = {"mesh.data": 1, "mesh.fsdp": 2, "epochs": 4}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_checkpoint_of_two_processes(tmp_path, divided, damage):
    """Both go on from the one before: none reads what is damaged, none waits for the other."""
    workdir = shutil.copytree(divided, tmp_path / "run")
    latest = workdir / "checkpoints" / "4"
    largest = max(
        (path for path in (latest / "state").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text("[]")
    (workdir / "summary.json").unlink()
    with two(workdir, devices=1, **DIVIDED) as running:
        assert [process.wait(300) for process in running] == [0, 0], log_of(workdir, 0).read_text()
    said = log_of(workdir, 0).read_text()
    assert "its checksum differs" in said
    assert "going on from the one before, of epoch 3" in said
    assert (workdir / "checkpoints_damaged" / "4").is_dir()
    assert_same_curve(divided, workdir, 4)


@pytest.mark.slow
def test_processes_with_different_configurations_end(tmp_path):
    workdir = tmp_path / "run"
    with two(workdir) as running:
        running[1].kill()
        running[1].wait()
        # In place of the second comes one that wants something else.
        running[1] = launch([*running[1].args, "--config.seed=5"], log_of(workdir, 1), 2)
        assert [process.wait(120) for process in running] == [2, 2]
    assert "different configurations: seed" in log_of(workdir, 1).read_text()
    assert not (workdir / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_others_that_never_come(index):
    """JAX would end the process by a stack trace of C++."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    chosen = {"coordinator": f"127.0.0.1:{port}", "count": 2, "index": index}
    script = (
        "from pb_jax.training import processes, resolve\n"
        "processes._PATIENCE, processes._START_WITHIN = 1, 3\n"
        f"processes.connect(resolve({{'distributed': True, 'processes': {chosen}}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    waiting, said, remedy = done.stderr.splitlines()
    assert waiting == "waiting for the other processes of this run"
    assert said.endswith("the processes do not find each other: not all have come within 3 s")
    assert remedy.startswith("Outside of SLURM")


@pytest.mark.slow
def test_who_leaves_has_its_status_though_the_other_does_not_come():
    """JAX would wait for half a minute, and then end the process by an abort."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = (
        "import sys, time\n"
        "from pb_jax import program\n"
        "from pb_jax.training import processes, resolve\n"
        "index = int(sys.argv[1])\n"
        f"chosen = {{'coordinator': '127.0.0.1:{port}', 'count': 2, 'index': index}}\n"
        "processes._PATIENCE = 1\n"
        "processes.connect(resolve({'distributed': True, 'processes': chosen}))\n"
        "if index == 0:\n"
        "    time.sleep(100)\n"
        "processes.leave(2)\n"
        "program.end(4)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(index)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    try:
        assert both[1].wait(60) == 2
        assert both[0].poll() is None
    finally:
        for process in both:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_platform_that_is_not_there(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/digits_pb.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "error: JAX finds no device, with JAX_PLATFORMS='cuda'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_device_is_an_error_of_the_user(monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'cuda': not found\nmore of it")

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"JAX_PLATFORMS='cuda'.*Unable to initialize.*not found\n"):
        processes.connect(resolve({}))


def test_alone_everything_is_on_the_first(tmp_path):
    assert processes.is_first()
    assert processes.on_first(lambda: {"a": 1}) == {"a": 1}
    assert processes.succeeded(True) is True
    assert processes.succeeded(False) is False
    with processes.own_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


def test_of_several_only_the_first_writes_into_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with processes.own_folder(tmp_path) as folder:
        (folder / "metrics.jsonl").write_text("{}")
        assert folder != tmp_path
    assert not folder.exists()
    assert not list(tmp_path.iterdir())


def test_an_error_of_jax_is_of_a_peer_only_if_there_is_one(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), processes.peers_matter():
        raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: closed")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(processes.PeerError, match="closed\nStart all"), processes.peers_matter():
        raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: closed\nand more")
    with pytest.raises(UserError, match=r"^no space$"), processes.peers_matter():
        raise UserError("no space") from OSError("no space left on device")


def test_a_checkpoint_is_not_to_blame_where_a_peer_is_gone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def gone():
        raise jax.errors.JaxRuntimeError("Gloo AllGather failed: reset by peer")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", gone)
    with pytest.raises(UserError, match="cannot write a checkpoint"), processes.peers_matter():
        checkpoints.wait()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(processes.PeerError, match="reached: Gloo"), processes.peers_matter():
        checkpoints.wait()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"processes": {"count": 2}}, "processes.count has no effect without distributed=True"),
        ({"mesh": {"data": 8}}, "batch_size=100 cannot be split over the 8 devices"),
        (
            {"mesh": {"data": 4}, "freeze": {"batch_size": 30}},
            "freeze.batch_size=30 cannot be split over the 4 devices of the mesh: 28 and 32 can",
        ),
        (
            {"mesh": {"fsdp": 2}, "freeze": {"compact": True}},
            "freeze.compact=True does not go with mesh.fsdp=2",
        ),
        ({"mesh": {"data": 0}}, "mesh.data=0 is not allowed"),
    ],
)
def test_contradictions(config, message):
    with pytest.raises(UserError, match=message):
        resolve(config)

"""Damaged checkpoints, disks that fail, clocks that jump."""

import errno
import gc
import os
import random
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from pb_jax import files
from pb_jax.errors import UserError
from pb_jax.training import exclusive, metrics, stored
from pb_jax.training.checkpoints import Checkpoints, read_arrays
from tests.tiny_training import assert_same_run, lines, tiny_fit, tiny_steps

ROOT = Path(__file__).parents[1]

# ----------------------------------------------------------------------------------------------
# Damaged checkpoints. `python -m tests.fuzz` tries thousands.
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, and the state that is in both."""
    folder = tmp_path_factory.mktemp("saved") / "c"
    _, state = tiny_steps()
    checkpoints = Checkpoints(folder)
    for epoch in (1, 2):
        checkpoints.save(state, {"epoch": epoch, "val_accuracy": epoch / 10})
    checkpoints.close()
    return folder, state


def flip(content, rng):
    place = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def assert_second_is_passed_over(folder, state, why):
    with pytest.raises(UserError, match=why):
        read_arrays(folder, 2)
    said = []
    checkpoints = Checkpoints(folder, warn=said.append)
    assert checkpoints.restore(state)[1]["epoch"] == 1
    checkpoints.close()
    assert re.search(why, said[0])


def bits(state):
    return {name: np.asarray(array).tobytes() for name, array in stored.flat(state).items()}


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("item", ["state", "record", "checksums", "metrics"])
def test_a_damaged_file_of_the_latest_checkpoint(saved, tmp_path, damage, item):
    """What was saved comes back, or the one before it does; never anything else."""
    kept, state = saved
    rng = random.Random(f"{damage.__name__} {item}")
    for number in range(3):
        folder = shutil.copytree(kept, tmp_path / str(number))
        files = sorted(p for p in (folder / "2" / item).rglob("*") if p.is_file())
        path = rng.choice(files)
        path.write_bytes(damage(path.read_bytes(), rng))
        said = []
        checkpoints = Checkpoints(folder, warn=said.append)
        found = checkpoints.restore(state)
        checkpoints.close()
        assert found is not None
        assert bits(found[0]) == bits(state)
        assert found[1]["val_accuracy"] == found[1]["epoch"] / 10
        assert bool(said) == (found[1]["epoch"] == 1)
        gc.collect()  # what orbax's failed reads leave must not be reported: here, not anywhere


def test_damage_is_seen_before_anything_is_read(saved, tmp_path, monkeypatch):
    """There are changed bits for which tensorstore ends the process."""
    kept, _ = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    path = min((folder / "2" / "state" / "d").iterdir())
    path.write_bytes(flip(path.read_bytes(), random.Random(0)))
    monkeypatch.setattr(
        "orbax.checkpoint.Checkpointer.restore", lambda *_, **__: pytest.fail("was read")
    )
    with pytest.raises(UserError, match=r"state/d/\w+ is not what was saved"):
        read_arrays(folder, 2)


def test_an_array_that_is_gone(saved, tmp_path):
    kept, _ = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    path = folder / "2" / "checksums" / "metadata"
    path.write_text(path.read_text().replace("{", '{"params.more": 1, ', 1))
    stored.sum_files(folder / "2")
    with pytest.raises(UserError, match=r"params\.more is not there, but was saved"):
        read_arrays(folder, 2)


def test_what_failed_reads_leave_is_quiet(capfd):
    """On a terminal it would be pages of stack traces that end in nothing."""

    async def read_of_orbax():
        pytest.fail("is never awaited")

    stored.quiet()
    path = str(Path("site-packages", "orbax", "checkpoint.py"))
    code = read_of_orbax.__code__.replace(co_filename=path)
    types.FunctionType(code, globals())()
    gc.collect()
    closed = types.SimpleNamespace(
        object=None, exc_value=RuntimeError("Event loop is closed"), exc_type=RuntimeError
    )
    sys.unraisablehook(closed)
    assert capfd.readouterr() == ("", "")


def test_changed_values_are_noticed_wherever_they_are_read(saved, tmp_path):
    """As with a flip that compression does not notice: all files in order, another content."""
    kept, state = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    other = Checkpoints(tmp_path / "other")
    params = {name: leaf.at[0].add(1e-6) for name, leaf in state.params.items()}
    other.save(state._replace(params=params), {"epoch": 2, "val_accuracy": 0.2})
    other.close()
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(tmp_path / "other" / "2" / "state", folder / "2" / "state")
    stored.sum_files(folder / "2")
    said = r"params\.\S+ is not what was saved: its checksum differs"
    assert_second_is_passed_over(folder, state, said)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"init_timestamp_nsecs": []}', b"\xff"])
def test_damaged_notes_of_orbax(saved, tmp_path, content):
    """What it notes of a checkpoint is not needed: nothing is lost with it."""
    kept, state = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    (folder / "2" / "_CHECKPOINT_METADATA").write_bytes(content)
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(state)
    assert bits(found[0]) == bits(state)
    assert found[1]["epoch"] == 2
    checkpoints.save(state, {"epoch": 3, "val_accuracy": 0.0})
    checkpoints.close()
    assert stored.epochs(folder) == [2, 3]


@pytest.mark.parametrize("place", ["metrics", "metrics/metrics"])
def test_metrics_of_another_kind(saved, tmp_path, place):
    """A folder in the place of a file, or a file in that of a folder: they are written again."""
    kept, state = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    path = folder / "2" / place
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(state)
    checkpoints.close()
    assert bits(found[0]) == bits(state)
    assert found[1]["epoch"] == 2


@pytest.mark.parametrize("damage", [flip, cut, lambda *_: None])
def test_a_damaged_file_of_a_checkpoint_of_several_processes(saved, tmp_path, damage):
    """Arrays of which each has a part have no checksum, but all files have one."""
    kept, state = saved
    rng = random.Random(0)
    for number in range(5):
        folder = shutil.copytree(kept, tmp_path / str(number))
        (folder / "2" / "checksums" / "metadata").write_text("{}")
        stored.sum_files(folder / "2")
        stored.check_files(folder / "2")
        damaged = rng.choice(sorted(p for p in (folder / "2" / "state").rglob("*") if p.is_file()))
        content = damage(damaged.read_bytes(), rng)
        damaged.write_bytes(content) if content is not None else damaged.unlink()
        assert_second_is_passed_over(folder, state, "is not what was saved: its checksum differs")


def test_older_checkpoints_have_no_checksums(saved, tmp_path):
    kept, state = saved
    folder = shutil.copytree(kept, tmp_path / "c")
    shutil.rmtree(folder / "2" / "checksums")
    (folder / "2" / "files.json").unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(state)[1]["epoch"] == 2
    checkpoints.close()


# ----------------------------------------------------------------------------------------------
# Disks.
# ----------------------------------------------------------------------------------------------


def test_a_file_and_its_name_are_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor, inner=os.fsync):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        inner(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.replacing(tmp_path / "a") as temporary:
        temporary.write_text("content")
    assert synced == [temporary, tmp_path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_is_said(tmp_path, number):
    said = pytest.raises(UserError, match=f"cannot write it: {os.strerror(number)}")
    with said, exclusive(tmp_path):
        raise OSError(number, os.strerror(number), "it")


@pytest.mark.slow
def test_a_line_that_cannot_be_written(tmp_path, monkeypatch):
    """It is said in a sentence, and the run goes on as if nothing had been."""
    tiny_fit(tmp_path / "whole", 3)
    append = metrics.append

    def fail(path, record):
        append(path, record)
        if record["epoch"] == 2:
            path.write_bytes(path.read_bytes()[:-9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def train():
        with exclusive(tmp_path / "run"):
            tiny_fit(tmp_path / "run", 3)

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", fail)
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space"):
            train()
    train()
    assert_same_run(tmp_path / "whole", tmp_path / "run", 3)


def test_events_that_cannot_be_written(tmp_path, monkeypatch):
    """Numbers are written by the thread that trains: an error is raised, and nobody waits."""
    board = metrics.TensorBoard(tmp_path, 0)
    monkeypatch.setattr(board._writer, "write_event", lambda _: os.write(full, b"x"))
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left on device"):
            board.write(dict.fromkeys(metrics.KEYS, 1))
    finally:
        os.close(full)
        board.close()
    assert len(list(tmp_path.iterdir())) == 1
    metrics.TensorBoard(tmp_path, 1).close()  # in the same second
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EISDIR, errno.EEXIST])
def test_what_may_not_be_written_is_said(tmp_path, number):
    """Of the run's own files; elsewhere it may be a defect."""
    message = f"cannot read or write {tmp_path}/it: {os.strerror(number)}\nWhen that is mended"
    with pytest.raises(UserError, match=message), exclusive(tmp_path):
        raise OSError(number, os.strerror(number), f"{tmp_path}/.it.1.part", None, f"{tmp_path}/it")
    with pytest.raises(OSError, match=os.strerror(number)), exclusive(tmp_path):
        raise OSError(number, os.strerror(number), f"{tmp_path}_2/it")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    said = pytest.raises(UserError, match=f"{name} is a folder, where a file is to be")
    with said, exclusive(tmp_path):
        pytest.fail("not reached")


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "figures"])
def test_a_file_in_the_place_of_a_folder(tmp_path, name):
    (tmp_path / name).write_text("")
    said = pytest.raises(UserError, match=f"{name} is a file, where a folder is to be")
    with said, exclusive(tmp_path):
        pytest.fail("not reached")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with exclusive(tmp_path):
        said = capsys.readouterr().err
    assert said.startswith(f"WARNING: {tmp_path} cannot be locked ({os.strerror(number)})")
    assert said.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into"), exclusive(tmp_path / "file" / "run"):
        pytest.fail("not reached")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), exclusive(tmp_path):
        (tmp_path / "nowhere").read_text()


ENTER_AS_NOBODY = """
import os, sys
from pathlib import Path
from pb_jax.errors import UserError
from pb_jax.training import exclusive

os.setresuid(65534, 65534, 65534)
try:
    with exclusive(Path(sys.argv[1])):
        sys.exit("entered")
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for the right to be another user")
@pytest.mark.slow
def test_a_folder_without_the_right_to_write(tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    # Not by a fork: JAX has threads here.
    command = [sys.executable, "-c", ENTER_AS_NOBODY, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout


SMALL = [
    *("--config", "configs/digits_pb.py", "--config.epochs=3", "--config.batch_size=20"),
    *("--config.dataset.limit_train=100", "--config.dataset.limit_eval=50"),
    *("--config.freeze.rule=quantile", "--config.freeze.frozen=0.8"),
    "--config.freeze.start_epoch=2",
]


AS_A_USER = "setpriv --bounding-set -dac_override,-dac_read_search,-fowner --inh-caps -all"


LIMITED = """
import os, resource, sys

most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""


def train(workdir, *flags, user=False, most=None, timeout=600):
    """`train.py`; `user`: without root's rights over files; `most`: bytes of a file."""
    before = AS_A_USER.split() if user and os.geteuid() == 0 else []
    if most is not None:
        before += [sys.executable, "-c", LIMITED, str(most)]
    command = [*before, sys.executable, "train.py", *SMALL, "--workdir", str(workdir), *flags]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system into a folder, with options of tmpfs."""

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("asks for the right to mount a file system")
        mounted.append(tmp_path)

    mounted = []
    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert train(workdir).returncode == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("most", [100, 100_000])
def test_files_may_not_grow(whole, tmp_path, most):
    """A limit on the size of files stands for a disk that is full: nobody needs to be root."""
    done = train(tmp_path, most=most)
    assert done.returncode == 2, done.stderr
    said, remedy = done.stderr.splitlines()[-2:]  # before it, threads of orbax may say more
    assert said.startswith("error: cannot write")
    assert remedy.startswith("When that is mended, the same again goes on")
    assert train(tmp_path).returncode == 0
    assert_same_run(whole, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["size=4k", "size=900k", "size=2000k", "nr_inodes=8"])
def test_a_full_disk(whole, tmp_path, small_disk, limit):
    small_disk(limit)
    # A write that fails leaves threads of orbax that wait for five minutes.
    done = train(tmp_path / "run", timeout=200)
    assert done.returncode == 2, done.stderr
    said, remedy = done.stderr.splitlines()[-2:]
    assert said.startswith("error: cannot write")
    assert "No space left on device" in said
    assert remedy.startswith("When that is mended, the same again goes on")
    more = "nr_inodes=10000" if "inodes" in limit else "size=100m"
    subprocess.run(["mount", "-o", f"remount,{more}", str(tmp_path)], check=True)
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, tmp_path / "run", 3)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write all")
@pytest.mark.parametrize(
    ("place", "mode"),
    [(".", 0o555), ("tensorboard", 0o555), ("checkpoints", 0o555), ("checkpoints/3", 0o000)],
)
def test_a_run_that_may_not_be_written(whole, tmp_path, place, mode):
    workdir = shutil.copytree(whole, tmp_path / "run")
    path = workdir / place
    path.chmod(mode)
    try:
        done = train(workdir, "--config.epochs=4", user=True, timeout=200)
    finally:
        path.chmod(0o755)
    assert done.returncode == 2, done.stderr
    said, remedy = done.stderr.splitlines()
    assert said.startswith(f"error: cannot read or write {path}")
    assert said.endswith("Permission denied")
    assert remedy == "When that is mended, the same again goes on."
    assert len(lines(workdir)) == 3


# ----------------------------------------------------------------------------------------------
# Clocks.
# ----------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_while_it_saves(tmp_path, monkeypatch):
    """By an hour, whenever orbax looks at it."""
    _, state = tiny_steps()
    rng = random.Random(0)
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(1e9, 1e9 + 3600))
    for epoch in range(1, 6):
        checkpoints.save(state, {"epoch": epoch, "val_accuracy": 0.1})
    checkpoints.close()
    assert stored.epochs(tmp_path) == [1, 4, 5]


def test_what_takes_too_long_is_not_to_be_mended(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def late():
        raise TimeoutError("ChainedFuture timed out")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", late)
        with pytest.raises(UserError, match=r"timed out\nThe same again goes on from"):
            checkpoints.wait()
    checkpoints.close()


@pytest.mark.slow
def test_a_clock_that_jumps(tmp_path, monkeypatch):
    """Durations come from a clock that cannot be set."""
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(1e9, 1e9 + 3600))
    tiny_fit(tmp_path, 2)
    for record in metrics.read(tmp_path / "metrics.jsonl"):
        assert 0 < record["seconds"] < 600
        assert record["examples_per_second"] > 0
    assert len(lines(tmp_path)) == 2

"""Short runs of the harnesses whose long ones have written results/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pb_jax.files import read_json

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(harness, out, *arguments):
    command = [sys.executable, "-m", f"tests.{harness}", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_json(out)


def test_kills_at_random_moments(tmp_path):
    few = ("--kills", "4", "--stops", "2", "--experiments", "delta")
    assert sum(run("faults", tmp_path / "faults.json", *few)["signals"].values()) == 6


def test_damaged_files(tmp_path):
    found = run("fuzz", tmp_path / "fuzz.json", "--inputs", "250", "--seed", "1")
    assert (found["inputs"], found["failed"]) == (250, 0)
    assert found["refused"] > 50


def test_a_long_run(tmp_path):
    found = run("endurance", tmp_path / "endurance.json", "--epochs", "30")
    assert [one["failed"] for one in found["runs"].values()] == [[], [], []]


BAD = """
import json, os, pickle, time
from pathlib import Path
from tests import fuzz
from tests.outside_files import Reader

def reader(read):
    whole = [True]  # what is read first is whole
    def attempt(folder, _):
        if not whole:
            read(folder)
        whole.clear()
    return Reader(1, lambda folder: (folder / "a").write_text("whole"), attempt)

def loop(folder):
    while True:
        pass

def unpickle(folder):
    pickle.loads(b"cbuiltins\\nlen\\n.")

fuzz.SECONDS = 1
fuzz.READERS.clear()
fuzz.READERS |= {
    "good": reader(lambda folder: (folder / "b").write_text("inside")),
    "raises": reader(lambda folder: 1 / 0),
    "hangs": reader(loop),
    "crashes": reader(lambda folder: os.abort()),
    "runs": reader(lambda folder: os.system("true")),
    "unpickles": reader(unpickle),
    "writes": reader(lambda folder: (folder.parent / "escaped").write_text("outside")),
    "imports": reader(lambda folder: __import__("pb_jax_canary")),
    "eats": reader(lambda folder: bytearray(2**33)),
}
print(json.dumps(fuzz.run(18, say=lambda _: None)["readers"]))
"""


def test_bad_readers_are_found():
    """Each of these does on every input what none may do."""
    done = subprocess.run(
        [sys.executable, "-c", BAD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("good")["failed"] == 0
    assert found.pop("imports")["failed"] == 1  # the other finds it imported
    assert len(found) == 7
    assert {name: counts["failed"] for name, counts in found.items()} == dict.fromkeys(found, 2)

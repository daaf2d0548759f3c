import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from models import host_memory
from models.host_memory import reuse_host_memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")

PROGRAM = """
import json, resource, sys
import models
kept = models.reuse_host_memory() if sys.argv[1] == "reuse" else None
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    scratch = jax.lax.optimization_barrier(jnp.broadcast_to(x, (25_000_000,)))
    return jnp.sum(scratch.at[::7].multiply(2.0))

faults = []
for value in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(jnp.float32(value)).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([kept, min(faults[1:]), sum(faults[1:])]))
"""


LARGE = """
import ctypes, json, re, resource, sys
from pathlib import Path
import models
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.RLIM_INFINITY))
kept = models.reuse_host_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.memset(libc.malloc(64 << 20), 1, 64 << 20)  # numpy asks for huge pages by itself
rollup = Path("/proc/self/smaps_rollup").read_text()
print(json.dumps([kept, int(re.search(r"AnonHugePages: *([0-9]+) kB", rollup)[1])]))
"""


def run(mode, program=PROGRAM):
    command = [sys.executable, "-c", program, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_scratch_memory_is_not_fetched_again():
    kept, least, total = run("reuse")
    _, least_without, total_without = run("plain")
    assert kept is True
    assert least < least_without / 10
    assert total < total_without / 3  # 0.05 to 0.21 was seen


@pytest.mark.skipif(
    not HUGE_PAGES.is_file()
    or "[madvise]" not in HUGE_PAGES.read_text()
    or OVERCOMMIT.read_text().strip() == "2",
    reason="needs a kernel that gives huge pages to who asks",
)
def test_memory_lies_on_huge_pages():
    kept, kilobytes = run("plain", LARGE)
    assert kept is True
    assert kilobytes > 32 << 10  # half of what was written, at least
    assert run("limited", LARGE) == [True, 0]


def test_a_strict_kernel_is_asked_for_no_addresses(monkeypatch, tmp_path):
    strict = tmp_path / "overcommit_memory"
    strict.write_text("2\n")
    monkeypatch.setattr(host_memory, "_OVERCOMMIT", strict)
    assert not host_memory._may_reserve()


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert reuse_host_memory() is False

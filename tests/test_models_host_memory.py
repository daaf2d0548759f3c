import json
import platform
import subprocess
import sys

import pytest

from models.host_memory import reuse_host_memory

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


def run(mode):
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_scratch_memory_is_not_fetched_again():
    kept, least, total = run("reuse")
    _, least_without, total_without = run("plain")
    assert kept is True
    assert least < least_without / 10
    assert total < total_without / 3  # 0.05 to 0.21 was seen


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert reuse_host_memory() is False

"""How long a byte takes from one core to another and back, which tells how near these are.

    python -m benchmarks.cores

A virtual machine's cores may share a cache at one minute and not at the next, as their host moves
them. What one core has written and the other reads then takes several times longer.
"""

import mmap
import statistics
import subprocess
import sys
import tempfile
import time

_ROUNDS = 255  # all a byte can count
_LINE = 64  # bytes of a cache line: each core's counter has its own
_PATIENCE = 100_000_000  # looks, several seconds
_OTHER = f"""
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    for count in range(1, {_ROUNDS + 1}):
        while memory[0] != count:
            pass
        memory[{_LINE}] = count
"""


def round_trip_ns() -> float:
    """The median of 254 round trips, in nanoseconds; Python's own share is included."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(2 * _LINE))
        file.flush()
        command = [sys.executable, "-S", "-c", _OTHER, file.name]
        taken = []
        with (
            mmap.mmap(file.fileno(), 0) as memory,
            subprocess.Popen(command) as other,  # noqa: S603 - the program above
        ):
            for count in range(1, _ROUNDS + 1):
                start = time.perf_counter_ns()
                memory[0] = count
                for _ in range(_PATIENCE):
                    if memory[_LINE] == count:
                        break
                else:
                    other.kill()
                    sys.exit("cores: the other process does not answer")
                taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken[1:])  # the first waits for the process


if __name__ == "__main__":
    print(f"{round_trip_ns():.0f} ns")

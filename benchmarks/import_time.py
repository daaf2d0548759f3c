"""How long `import pb_jax` takes, beside `import jax, optax`, which every user of it has anyway.

    python -m benchmarks.import_time [--repeats 15] [--json FILE]

Each in a Python of its own, in turns, medians, after one round that does not count. "all of it"
asks for a name, so that everything is imported which `import pb_jax` leaves until then. CPU seconds
are of user and system; the others are of the clock, and suffer from whatever else runs.
"""

import os
import statistics
import subprocess
import sys
import time

from benchmarks import command
from benchmarks.rows import Rows
from pb_jax.program import run

COLUMNS = ("imported", "seconds", "cpu_seconds", "ratio", "cpu_ratio")
BESIDE = "import jax, optax"
IMPORTED = {
    "import pb_jax": "import pb_jax",
    BESIDE: BESIDE,
    "import pb_jax, all of it": "import jax, optax, pb_jax; pb_jax.partial_backprop",
    "import pb_jax.training": "import jax, optax, pb_jax.training",
}


def measure(program: str) -> tuple[float, float]:
    """Seconds on the clock and of the CPU that a Python takes for a program, its start included."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 (one of ours)
    seconds, after = time.perf_counter() - begun, os.times()
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def main() -> int:
    """Measure, print, and write where asked to."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count (15)")
    options = parser.parse_args()
    programs = {"Python alone": "pass", **IMPORTED}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(options.repeats + 1):
        for name, program in programs.items():
            measured = measure(program)
            if turn:
                found[name].append(measured)
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in found.items()
    }
    rows = [
        [
            name,
            *(round(value, 3) for value in times),
            *(round(value / other, 3) for value, other in zip(times, medians[BESIDE], strict=True)),
        ]
        for name, times in medians.items()
    ]
    print("".join(f"{column:>14}" for column in COLUMNS[1:]))
    for name, *values in rows:
        print("".join(f"{value:14}" for value in values) + f"  {name}")
    Rows(options.json, COLUMNS).add(*rows)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

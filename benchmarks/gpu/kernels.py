"""What a training step is made of on a GPU: how many kernels, and how long they take.

    python -m benchmarks.gpu.kernels [--models vgg19,resnet110] [--ways full,compact] [--frozen 0.8]

The steps of `benchmarks.freeze_step`, twenty of which are one program. Printed are the seconds to
compile, the shortest and the median of four times twenty steps, and what one needs of memory; then
kernels and milliseconds a step by XLA's profiler: of all, of the kinds that take longest (names
without their numbers), and of single kernels.
"""

import argparse
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks import command
from benchmarks.jax_steps import TRAINED, WAYS, Ours
from benchmarks.processes import timed
from pb_jax.errors import UserError
from pb_jax.program import run

Kernels = dict[str, tuple[float, float]]
"""By name: how many a step, and their milliseconds."""


def totals(events: Iterable[tuple[str, float]], steps: int) -> Kernels:
    """Of the kernels, with their milliseconds, that the profiler saw in so many steps."""
    found = defaultdict[str, list[float]](list)
    for name, ms in events:
        found[name].append(ms)
    return {name: (len(of_name) / steps, sum(of_name) / steps) for name, of_name in found.items()}


def by_kind(kernels: Kernels) -> Kernels:
    """Those whose names differ in numbers alone, together."""
    found: Kernels = {}
    for name, (count, ms) in kernels.items():
        kind = re.sub(r"[_.]?\d+", "", name)
        before = found.get(kind, (0.0, 0.0))
        found[kind] = before[0] + count, before[1] + ms
    return found


def profiled(step: Ours) -> Kernels:
    """The kernels of a step."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step.one()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return totals(_events(ProfileData.from_file(str(file))), step.updates)


def _events(profile: Any) -> Iterator[tuple[str, float]]:
    for plane in profile.planes:
        for line in plane.lines:
            if plane.name.startswith("/device:GPU") and line.name.startswith("Stream"):
                yield from ((event.name, event.duration_ns / 1e6) for event in line.events)


def _show(kernels: Kernels, most: int) -> None:
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:most]
    for name, (count, ms) in longest:
        print(f"   {ms:9.4f} ms {count:7.1f} {name[:80]}")


def main() -> int:
    """Compile, time, profile, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks, ways = command.names(TRAINED, "network"), command.names(WAYS, "way")
    parser.add_argument("--models", type=networks, default="vgg19,resnet110")
    parser.add_argument("--ways", type=ways, default="full,compact")
    parser.add_argument("--frozen", type=float, default=0.8)
    arguments = parser.parse_args()
    if jax.default_backend() != "gpu":
        raise UserError("kernels profiles a GPU, and JAX has none here")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name in arguments.models:
        for way in arguments.ways:
            step = Ours(name, way, arguments.frozen)
            step.one()
            seconds, _ = timed(step.one, 4)
            shortest, median = (
                1e3 * taken / step.updates for taken in (min(seconds), statistics.median(seconds))
            )
            print(
                f"{name:12} {way:8} compile {step.compile_s:6.1f} s step {shortest:8.2f} "
                f"{median:8.2f} ms; {step.step_mb:.0f} MB"
            )
            kernels = profiled(step)
            count, ms = (sum(column) for column in zip(*kernels.values(), strict=True))
            print(f"{count:.1f} kernels, {ms:.4f} ms a step")
            _show(by_kind(kernels), 22)
            print("   --")
            _show(kernels, 10)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""Times single convolutions on CPU, forward and both gradients: ours beside PyTorch's.

    python -m benchmarks.convolutions [--repeats 20] [--json FILE]

The 3 x 3 layers that a step of ResNet-110 and VGG19 spends its time in, batch 100, float32. "cores"
is processor time over time: of two cores, a convolution that reports 1.0 leaves one idle, which a
whole step gives to other work where there is any. Both programs work on memory that they keep.
PyTorch is in its channels-last layout. Medians.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import models

models.reuse_host_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import command  # noqa: E402
from benchmarks.rows import Rows, machine  # noqa: E402
from models.convolution import convolution  # noqa: E402
from pb_jax.program import run  # noqa: E402

try:
    import torch
except ModuleNotFoundError:
    sys.exit("convolutions compares with PyTorch: pip install -e '.[bench]'")

COLUMNS = ("image", "channels", "way", "seconds", "cores", "pytorch_seconds", "pytorch_cores")
LAYERS = ((32, 16), (16, 32), (8, 64), (32, 64), (16, 128), (8, 256), (4, 512))
WAYS = ("forward", "image gradient", "kernel gradient")
BATCH = 100


def ours(way: str, x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    """A compiled convolution, or one of its gradients."""
    numbers = ("NHWC", "HWIO", "NHWC")

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def run(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        if way == "forward":
            return forward(x, kernel)
        gradients = jax.vjp(forward, x, kernel)[1](cotangent)
        return gradients[WAYS.index(way) - 1]

    arguments = [jnp.asarray(array) for array in (x, kernel, cotangent)]
    options = models.compiler_options(jax.default_backend())
    compiled = jax.jit(run, compiler_options=options).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def pytorch(
    way: str, x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray
) -> Callable[[], Any]:
    """The same by PyTorch."""
    order = {"memory_format": torch.channels_last}
    image, given = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(**order) for array in (x, cotangent)
    )
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(**order)
    if way == "forward":
        return lambda: torch.nn.functional.conv2d(image, weight, padding=1)
    wanted = [way == name for name in (*WAYS[1:], "bias")]
    backward = torch.ops.aten.convolution_backward
    ones = [1, 1]
    return lambda: backward(given, image, weight, None, ones, ones, ones, False, [0, 0], 1, wanted)


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of a call, and the cores that it keeps busy."""
    for _ in range(3):
        work()
    time.sleep(0.1)  # threads that spin after their last work come to rest
    times, busy = [], _processor_time()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), (_processor_time() - busy) / sum(times)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="calls of each (20)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = Rows(arguments.json, COLUMNS)
    device = machine()
    print(f"{device['device']}, jax {device['jax']}, torch {torch.__version__}, {device['date']}")
    print(
        f"{'image':>7} {'channels':>8} {'':16} {'ms':>7} {'cores':>6} {'PyTorch':>8} {'cores':>6}"
    )
    for size, channels in LAYERS:
        shape = (BATCH, size, size, channels)
        x, cotangent = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
        for way in WAYS:
            mine = timed(ours(way, x, kernel, cotangent), arguments.repeats)
            theirs = timed(pytorch(way, x, kernel, cotangent), arguments.repeats)
            rows.add((size, channels, way, *mine, *theirs))
            print(
                f"{size:>3}x{size:<3} {channels:8} {way:16} {mine[0] * 1e3:7.2f} {mine[1]:6.2f} "
                f"{theirs[0] * 1e3:8.2f} {theirs[1]:6.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

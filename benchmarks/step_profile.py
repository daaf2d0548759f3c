"""Where a training step's time goes on a CPU, beside PyTorch's: what is left to gain.

    python -m benchmarks.step_profile [--models vgg19,captioner] [--steps 10] [--json FILE]

Full training, the steps that `train.py` compiles, batches of 100 (captioner: 60), by XLA's and
PyTorch's own profilers, in milliseconds a step.

    forward, images, kernels   the products of convolutions and of their gradients
    moved                      what is arranged for these: gathered, padded, transformed
    products                   other products, both passes
    rest                       of both passes: normalisation, activations, pooling, loss
    update                     the optimizer, and what the step reports
    step                       the whole step without a profiler

Each network has a process of its own, and each profile is the quickest of three. PyTorch's profiler
sees both gradients of a convolution as one, with what is moved for them. Operations that run side
by side count both, so that their sum may be above the step's.
"""

import multiprocessing
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import models

models.reuse_host_memory()

import jax  # noqa: E402
from jax.profiler import ProfileData  # noqa: E402

from benchmarks import command  # noqa: E402
from benchmarks.jax_steps import TRAINED, Ours  # noqa: E402
from benchmarks.rows import Rows, machine  # noqa: E402
from benchmarks.torch_steps import quickest, torch_process  # noqa: E402
from pb_jax.errors import UserError  # noqa: E402
from pb_jax.program import run  # noqa: E402

COLUMNS = ("network", "program", "kind", "ms")
KINDS = ("forward", "images", "kernels", "moved", "products", "rest", "update", "step")
SCOPES = {"/convolution/": "forward", "/image_gradient/": "images", "/kernel_gradient/": "kernels"}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([a-z][\w\-]*)\(")
_PRODUCTS = ("dot", "convolution", "custom-call")
_CONTAINERS = ("while", "call", "conditional")  # their time is that of what they hold


def ours(name: str, steps: int) -> dict[str, float]:
    """Milliseconds of a step by kind."""
    step = Ours(name, "full", 0.0, {"xla_cpu_enable_xprof_traceme": True})
    whole = median_ms(step, steps)
    kinds = dict(instructions(step.compiled.as_text() or ""))

    def once() -> dict[str, float]:
        found = defaultdict[str, float](float)
        for event, ms in traced(step, steps):
            # A call of oneDNN is marked by its own name too.
            if kind := kinds.get(event.partition("__onednn$")[0]):
                found[kind] += ms / steps
        return found

    return {"step": whole, **quickest(once)}


def instructions(text: str) -> Iterator[tuple[str, str | None]]:
    """Names of a program's instructions, and the kind of each that does something by itself."""
    convolves = "/convolution/" in text
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            name, operation = match.groups()
            path = re.search(r'op_name="([^"]*)"', line)
            yield name, kind_of(operation, path[1] if path else "", line, convolves)


def kind_of(operation: str, path: str, line: str, convolves: bool) -> str | None:
    """What an instruction's time counts as."""
    if operation in _CONTAINERS:
        return None
    product = operation in _PRODUCTS or re.search(r"fusion\(.*calls=%?\S*(dot|conv)", line)
    for scope, kind in SCOPES.items():
        if scope in path:
            return kind if product else "moved"
    if product:
        # oneDNN adds biases, and the gradients of a branch, to what it computes; the sum's name
        # remains.
        added = {"add": "forward", "add_any": "images"} if convolves else {}
        return added.get(path.rpartition("/")[2], "products")
    # Copies that the compiler makes have no path.
    return "rest" if "jvp(" in path or not path else "update"


def traced(step: Ours, steps: int) -> Iterator[tuple[str, float]]:
    """What XLA's profiler sees of some steps: names and milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step(steps)
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    yield event.name, event.duration_ns / 1e6


def theirs(name: str, steps: int) -> dict[str, float]:
    """The same of PyTorch's step."""
    with torch_process(name) as step:
        return {"step": median_ms(step, steps), **step.ask("profile", steps)}


def median_ms(step: Callable[[int], list[float]], steps: int) -> float:
    """Of some steps, after two that do not count."""
    return statistics.median(step(steps + 2)[2:]) * 1e3


def main() -> int:
    """Profile, print a table, and write the numbers where asked to."""
    parser = command.parser(__doc__)
    networks = command.names(TRAINED, "network")
    parser.add_argument("--models", type=networks, default=",".join(TRAINED))
    parser.add_argument("--steps", type=int, default=10, help="profiled (10)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        raise UserError("step_profile profiles the CPU: set JAX_PLATFORMS=cpu")

    rows = Rows(arguments.json, COLUMNS, arguments.models)
    device = machine()
    print(f"{device['device']}, jax {device['jax']}, {device['date']}; ms a step")
    print(f"{'network':12} {'program':8}" + "".join(f"{kind:>9}" for kind in KINDS))
    for name in arguments.models:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            programs = {"pb_jax": own.submit(ours, name, arguments.steps).result()}
        if name in models.NAMES and not arguments.no_torch:
            programs["PyTorch"] = theirs(name, arguments.steps)
        for program, found in programs.items():
            rows.add(*((name, program, kind, ms) for kind, ms in found.items()))
            both = found.pop("images + kernels", None)
            cells = [f"{found[kind]:9.1f}" if kind in found else f"{'':9}" for kind in KINDS]
            if both is not None:
                cells[1:3] = [f"{both:13.1f}     "]
            print(f"{name:12} {program:8}" + "".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

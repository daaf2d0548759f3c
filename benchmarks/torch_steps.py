"""Timing steps in turns, and PyTorch's training step in a process of its own.

In one process with JAX it finds the memory in pieces: DenseNet-121's step takes a seventh longer.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import models
from benchmarks.cores import round_trip_ns

_NEAR = 1.5  # times the shortest way between cores

Step = Callable[[], float]
"""Makes one update, waits for it, and returns the loss before it."""


def batch(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal images (N, H, W, C) and labels."""
    shape = (size, 28, 28, 1) if name == "lenet5" else (size, 32, 32, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return images, (np.arange(size) % 10).astype(np.int64)


class TorchStep:
    """A network's step, to be timed or profiled; its weights are those of seed 0.

    Args:
        name: the network.
        size: images a batch.
        frozen: share of the gradients that random masks set to zero, as in the paper's appendix;
            None: no masks.
        compiled: whether `torch.compile` compiles network and loss; else they run eagerly.
    """

    def __init__(
        self, name: str, size: int = 100, frozen: float | None = None, compiled: bool = False
    ) -> None:
        wanted = json.dumps({"name": name, "size": size, "frozen": frozen, "compiled": compiled})
        command = [sys.executable, "-m", "benchmarks.torch_steps", wanted]
        self._process = subprocess.Popen(  # noqa: S603 - this module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loss = float("nan")  # before the last step

    def __call__(self, steps: int) -> list[float]:
        """Seconds of each of so many steps, one after the other."""
        seconds, self.loss = self._ask("time", steps)
        return seconds

    def profile(self, steps: int) -> dict[str, float]:
        """Milliseconds of a step by kind: see `benchmarks.step_profile`."""
        return self._ask("profile", steps)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, what: str, steps: int) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, steps, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("PyTorch's process ended: see above")
        return json.loads(answer)


def timed(step: Step, steps: int) -> tuple[list[float], float]:
    """Seconds of each step, and the last loss."""
    seconds, loss = [], float("nan")
    for _ in range(steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    return seconds, loss


def turns(
    steps: Mapping[str, Callable[[int], list[float]]], repeats: int, run: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a step of each way in each turn: the median of `run` steps, after one more.

    Each turn begins with another way: the first is quicker by a percent, after the look at the
    cores.

    Returns:
        Of the turns in which the cores were about as near to each other as at best, `repeats` of
        them, if three times as many turns brought so many; and of the others. Of all turns and none
        where no turn was such.
    """
    for step in steps.values():
        step(2)
    trips = [round_trip_ns()]
    taken: list[dict[str, float]] = []
    order = deque(steps)
    while True:
        times = {}
        order.rotate(-1)
        for way in order:
            time.sleep(0.1)  # threads spin for a while after their last work
            times[way] = statistics.median(steps[way](run + 1)[1:])
        taken.append(times)
        trips.append(round_trip_ns())
        near = [max(both) < _NEAR * min(trips) for both in itertools.pairwise(trips)]
        if sum(near) >= repeats or len(near) >= 3 * repeats:
            break
    if not any(near):
        near = [True] * len(near)

    def those(wanted: bool) -> dict[str, list[float]]:
        chosen = [turn for turn, is_near in zip(taken, near, strict=True) if is_near == wanted]
        return {way: [turn[way] for turn in chosen] for way in steps}

    return those(True), those(False)


def ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of each turn, which slow changes of the machine leave alone."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def torch_step(name: str, size: int, frozen: float | None, compiled: bool) -> Step:
    """The appendix's loop: `Adam(amsgrad=True)`, channels last."""
    import torch

    from benchmarks.torch_models import NETWORKS

    torch.manual_seed(0)
    network = NETWORKS[name]().to(memory_format=torch.channels_last).train()
    images, labels = batch(name, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, amsgrad=True)
    masks = [] if frozen is None else [(torch.rand_like(p) > frozen).float() for p in parameters]

    def objective(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(network(x), y)

    compute = torch.compile(objective) if compiled else objective

    def step() -> float:
        optimizer.zero_grad()
        loss = compute(x, y)
        loss.backward()
        for parameter, mask in zip(parameters, masks, strict=False):
            parameter.grad *= mask
        optimizer.step()
        return loss.item()

    return step


def quickest(profile: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Of three profiles: some take a half longer than the steps do without a profiler."""
    return min((profile() for _ in range(3)), key=lambda kinds: sum(kinds.values()))


def profiled(step: Step, steps: int) -> dict[str, float]:
    """What PyTorch's profiler sees: milliseconds of a step by kind."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    found = defaultdict[str, float](float)
    for event in profiler.key_averages():
        ms, operation = event.self_cpu_time_total / 1e3 / steps, event.key
        if operation.startswith("Optimizer.step"):
            # All that it calls was counted as something else.
            whole = event.cpu_time_total / 1e3 / steps
            found["update"] += whole
            found["rest"] += ms - whole
        elif "convolution_backward" in operation:
            found["images + kernels"] += ms
        elif "convolution" in operation:
            found["forward"] += ms
        elif operation in ("aten::addmm", "aten::mm", "aten::bmm"):
            found["products"] += ms
        else:
            found["rest"] += ms
    return found


def main() -> None:
    """Make a step, and do what each line of the input asks for: "time 5" or "profile 5"."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to the terminal
    models.reuse_host_memory()
    step = torch_step(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        what, steps = line.split()
        if what == "time":
            answer = timed(step, int(steps))
        else:
            answer = quickest(lambda: profiled(step, int(steps)))  # noqa: B023 - called at once
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

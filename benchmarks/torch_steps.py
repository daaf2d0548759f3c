"""PyTorch's training step, in a process of its own: see `torch_process`."""

import importlib.util
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import models
from benchmarks.processes import Step, StepProcess, serve, updates_of_a_step
from pb_jax.errors import UserError


def torch_process(
    name: str, size: int = 100, frozen: float | None = None, compiled: bool = False
) -> StepProcess:
    """A network's step, to be timed or profiled; its weights are those of seed 0.

    Args:
        name: the network.
        size: images a batch.
        frozen: share of the gradients that random masks set to zero, as in the paper's appendix;
            None: no masks.
        compiled: whether `torch.compile` compiles network and loss; else they run eagerly.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("this compares with PyTorch: pip install -e '.[bench]'")
    return StepProcess(
        "benchmarks.torch_steps",
        name=name,
        size=size,
        frozen=frozen,
        compiled=compiled,
        device="cuda" if jax.default_backend() == "gpu" else "cpu",
        updates=updates_of_a_step(),
    )


def batch(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal images (N, H, W, C) and labels."""
    shape = (size, 28, 28, 1) if name == "lenet5" else (size, 32, 32, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return images, (np.arange(size) % 10).astype(np.int64)


def torch_step(
    name: str, size: int, frozen: float | None, compiled: bool, device: str, updates: int
) -> list[tuple[Step, dict[str, Any]]]:
    """The appendix's loop: `Adam(amsgrad=True)`, channels last.

    On a GPU with what XLA does there by itself: TF32, and a choice among cuDNN's algorithms.
    """
    import torch

    from benchmarks.torch_models import NETWORKS

    torch.manual_seed(0)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    network = NETWORKS[name]().to(device, memory_format=torch.channels_last).train()
    images, labels = batch(name, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).to(device)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, amsgrad=True)
    masks = [] if frozen is None else [(torch.rand_like(p) > frozen).float() for p in parameters]

    def objective(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(network(x), y)

    compute = torch.compile(objective) if compiled else objective

    def update() -> torch.Tensor:
        optimizer.zero_grad()
        loss = compute(x, y)
        loss.backward()
        for parameter, mask in zip(parameters, masks, strict=False):
            parameter.grad *= mask
        optimizer.step()
        return loss

    def step() -> float:
        for _ in range(updates - 1):
            update()
        return update().item()

    known: dict[str, Any] = {
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "updates": updates,
    }
    if compiled:
        start = time.perf_counter()
        update()
        known["compile_s"] = time.perf_counter() - start
    return [(step, known)]


def quickest(profile: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Of three profiles: some take a half longer than the steps do without a profiler."""
    return min((profile() for _ in range(3)), key=lambda kinds: sum(kinds.values()))


def profiled(step: Step, steps: int) -> dict[str, float]:
    """What PyTorch's profiler sees: milliseconds of a step by kind."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints each start and stop
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


if __name__ == "__main__":
    models.reuse_host_memory()
    serve(torch_step, profile=lambda step, steps: quickest(lambda: profiled(step, steps)))

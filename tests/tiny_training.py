"""A network and a dataset that train in milliseconds, and ways to look at the runs they leave."""

import io
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import pb_jax
from pb_jax.training import Classification, Freezing, fit, metrics, optimizers
from pb_jax.training.step import Steps

TRAIN, TEST, CLASSES, BATCH = 83, 25, 4, 10
STEPS = TRAIN // BATCH
MEAN, STD = (0.4,), (0.3,)
TIMES = ("seconds", "examples_per_second")


class Tiny(nnx.Module):
    """Dense layers with everything that carries state: batch statistics and a random stream.

    Gradients of the stem's bias are rounding alone, which differs between two compilations.
    """

    def __init__(self, rngs: nnx.Rngs, *, stem_bias: bool = True) -> None:
        self.stem = nnx.Linear(36, 12, use_bias=stem_bias, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(12, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.norm(self.stem(images.reshape(images.shape[0], -1)))
        return self.head(self.drop(jax.nn.relu(x)))


def tiny_data() -> Any:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, CLASSES, TRAIN + TEST).astype(np.int32)
    images = rng.integers(0, 120, (TRAIN + TEST, 6, 6, 1))
    images[np.arange(TRAIN + TEST), labels, labels] += 130
    images = images.astype(np.uint8)
    part = types.SimpleNamespace
    return part(
        train=part(images=images[:TRAIN], labels=labels[:TRAIN]),
        test=part(images=images[TRAIN:], labels=labels[TRAIN:]),
        mean=MEAN,
        std=STD,
    )


def tiny_task(
    data: Any = None, batch_size: int = BATCH, *, stem_bias: bool = True
) -> Classification:
    return Classification(Tiny(nnx.Rngs(0), stem_bias=stem_bias), data or tiny_data(), batch_size)


def tiny_schedule() -> optax.Schedule:
    return optimizers.piecewise(1e-2, (4,), 0.1, STEPS)


def tiny_freezing(**changes: Any) -> Freezing:
    rule = changes.pop("rule", pb_jax.fixed_threshold(2.0, learning_rate=1e-2))
    options = {"steps_per_epoch": STEPS, "alpha": 1e-2, "seed": 3, "compact": False} | changes
    return Freezing(rule, **options)


def tiny_fit(workdir: Path, epochs: int = 4, **changes: Any) -> dict[str, Any]:
    """Run `fit`; `printed` is what it wrote to a pipe."""
    workdir.mkdir(exist_ok=True)
    stream = io.StringIO()
    options: dict[str, Any] = {
        "learning_rate": tiny_schedule(),
        "freezing": tiny_freezing(),
        "seed": 3,
        "stream": stream,
    }
    optimizer = changes.pop("optimizer", None)
    if optimizer is None:
        optimizer = optimizers.create("adamw", tiny_schedule(), weight_decay=0.01)
    task = tiny_task(
        changes.pop("data", None),
        changes.pop("batch_size", BATCH),
        stem_bias=changes.pop("stem_bias", True),
    )
    options |= changes
    try:
        summary = fit(task, optimizer, workdir, epochs=epochs, **options)
    finally:
        (workdir / "printed.txt").write_text(stream.getvalue())
    return summary


def tiny_steps(freezing: Freezing | None = None, optimizer: Any = None) -> tuple[Steps, Any]:
    """The step functions of the tiny network, and its first state."""
    task = tiny_task()
    optimizer = optimizer or optimizers.create("adamw", tiny_schedule(), weight_decay=0.01)
    steps = Steps(task, optimizer, freezing)
    return steps, steps.initial(task.params, task.model_state)


def saved_state(workdir: Path, epoch: int, freezing: Freezing | None = None) -> dict[str, Any]:
    """The arrays of a checkpoint, read with orbax alone."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(epoch) / "state").resolve())


def saved_epochs(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_run(one: Path, other: Path, epoch: int) -> None:
    """Both runs have the same lines, but for times, and the same bits after `epoch`."""
    assert lines(one) == lines(other)
    first, second = saved_state(one, epoch), saved_state(other, epoch)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(second[name]), err_msg=name)


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Of `metrics.jsonl`, without times."""
    records = metrics.read(workdir / "metrics.jsonl")
    return [{key: r[key] for key in r if key not in TIMES} for r in records]

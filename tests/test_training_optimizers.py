import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pb_jax.errors import UserError
from pb_jax.training import optimizers


def reference(grads, learning_rate, b1, b2, eps, start):
    """PyTorch's loop, transcribed from its documentation into float64."""
    m = v = largest = np.zeros_like(start)
    theta = start.astype(np.float64)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        largest = np.maximum(largest, v)
        denominator = np.sqrt(largest) / np.sqrt(1 - b2**t) + eps
        theta = theta - learning_rate / (1 - b1**t) * m / denominator
    return theta


def gradients(steps=30):
    """Large first, small later: where the maximum matters."""
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(steps) < 5, 3.0, 0.05)
    return rng.normal(size=(steps, 7)) * scale[:, None]


def run(optimizer, grads, start):
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for g in grads:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


@pytest.mark.parametrize(("b1", "b2", "eps"), [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-2)])
def test_amsgrad_is_pytorchs(b1, b2, eps):
    grads, start = gradients(), np.linspace(-1, 1, 7)
    found = run(optimizers.amsgrad_torch(0.01, b1, b2, eps), grads, start)
    np.testing.assert_allclose(found, reference(grads, 0.01, b1, b2, eps, start), atol=2e-6)
    others = run(optax.amsgrad(0.01, b1, b2, eps), grads, start)
    assert np.abs(others - found).max() > 1e-3  # optax's is another algorithm


def test_amsgrad_against_torch():
    torch = pytest.importorskip("torch")
    grads, start = gradients(), np.linspace(-1, 1, 7)
    weight = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    other = torch.optim.Adam([weight], lr=0.01, amsgrad=True)
    for g in grads:
        weight.grad = torch.tensor(g, dtype=torch.float32)
        other.step()
    found = run(optimizers.amsgrad_torch(0.01), grads, start)
    np.testing.assert_allclose(found, weight.detach().numpy(), atol=1e-6)


def test_amsgrad_takes_schedules_and_injected_rates():
    grads, start = gradients(6), np.ones(7)
    constant = run(optimizers.amsgrad_torch(0.01), grads, start)
    injected = optax.inject_hyperparams(optimizers.amsgrad_torch)(learning_rate=0.01)
    np.testing.assert_allclose(run(injected, grads, start), constant, rtol=1e-6)
    stopped = run(
        optimizers.amsgrad_torch(lambda step: jnp.where(jnp.asarray(step) < 3, 0.01, 0.0)),
        grads,
        start,
    )
    np.testing.assert_allclose(stopped, run(optimizers.amsgrad_torch(0.01), grads[:3], start))


def test_boundaries_that_no_step_reaches():
    schedule = optimizers.piecewise(0.5, (2, 2**31 - 1), 0.1, steps_per_epoch=10)
    assert [round(float(schedule(step)), 3) for step in (19, 20, 2**31 - 1)] == [0.5, 0.05, 0.05]


def test_piecewise_changes_after_full_epochs_as_torch_does():
    torch = pytest.importorskip("torch")
    schedule = optimizers.piecewise(0.3, (2, 5), 0.1, steps_per_epoch=4)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    milestones = torch.optim.lr_scheduler.MultiStepLR(other, [2, 5], gamma=0.1)
    for epoch in range(7):
        rates = [float(schedule(epoch * 4 + step)) for step in range(4)]
        np.testing.assert_allclose(rates, milestones.get_last_lr()[0], rtol=1e-6)
        other.step()
        milestones.step()


def test_no_boundaries_mean_a_constant_rate():
    schedule = optimizers.piecewise(0.3, (), 0.1, steps_per_epoch=4)
    assert {float(np.float32(schedule(step))) for step in (0, 9, 10_000)} == {
        float(np.float32(0.3))
    }


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_every_optimizer_descends_and_takes_its_own_parameters(name):
    optimizer = optimizers.create(name, 0.05, **optimizers.parameters(name))
    params = jnp.array([1.0, -2.0, 3.0])
    state = optimizer.init(params)
    for _ in range(40):
        updates, state = optimizer.update(2 * params, state, params)
        params = jnp.asarray(optax.apply_updates(params, updates))
    assert float(jnp.sum(params**2)) < 14 / 2


def test_sgd_is_pytorchs():
    torch = pytest.importorskip("torch")
    grads, start = gradients(8), np.linspace(-1, 1, 7)
    weight = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    other = torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True)
    for g in grads:
        weight.grad = torch.tensor(g, dtype=torch.float32)
        other.step()
    mine = optimizers.create("sgd", 0.01, momentum=0.9, weight_decay=0.1, nesterov=True)
    np.testing.assert_allclose(run(mine, grads, start), weight.detach().numpy(), atol=1e-6)


def test_unknown_names_and_parameters():
    with pytest.raises(UserError, match=r"unknown optimizer 'sdg'.*sgd"):
        optimizers.create("sdg", 0.1)
    with pytest.raises(UserError, match="'adam' takes no momentum"):
        optimizers.create("adam", 0.1, momentum=0.9)

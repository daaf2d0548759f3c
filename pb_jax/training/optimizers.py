"""Optimizers by name, AMSGrad as PyTorch computes it, and the learning rate over the epochs."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pb_jax.errors import UserError
from pb_jax.training.small_leaves import EntryWise


class ScaleByAmsgradTorchState(NamedTuple):
    """State of `scale_by_amsgrad_torch`: steps taken, both moments, the second's maximum."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


def scale_by_amsgrad_torch(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformation:
    """Rescale updates by AMSGrad with the maximum taken before the bias correction.

    See `amsgrad_torch`.
    """

    def init(params: optax.Params) -> ScaleByAmsgradTorchState:
        return ScaleByAmsgradTorchState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
            nu_max=optax.tree.zeros_like(params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAmsgradTorchState]:
        del params
        assert isinstance(state, ScaleByAmsgradTorchState)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        count = jnp.asarray(optax.safe_increment(state.count))
        first, second = _bias_correction(b1, count), _bias_correction(b2, count)
        updates = jax.tree.map(
            lambda m, v: m / first.astype(m.dtype) / (jnp.sqrt(v / second.astype(v.dtype)) + eps),
            mu,
            nu_max,
        )
        return updates, ScaleByAmsgradTorchState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def _bias_correction(decay: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    """1 - decay ** count to the last digit.

    In float32 1 - 0.999 is wrong by 1e-5, in the same sense for every weight: enough to send a
    training another way than PyTorch, which computes this in float64.
    """
    log = math.log(decay) if isinstance(decay, float) else jnp.log(decay)
    return -jnp.expm1(count.astype(jnp.float32) * log)


def amsgrad_torch(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformation:
    r"""AMSGrad as `torch.optim.Adam(amsgrad=True)` computes it.

    The maximum runs over the *uncorrected* second moment and is corrected for its bias afterwards:

    .. math::
        \hat v_t = \frac{\max_{s \le t} v_s}{1 - \beta_2^t}, \qquad
        \theta_t = \theta_{t-1} - \alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    whereas `optax.amsgrad` takes the maximum of the corrected moments, which in the first steps are
    larger by up to :math:`1 / (1 - \beta_2)`, and so makes smaller steps ever after.

    Args:
        learning_rate: a number, or a schedule from the number of steps taken to one.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator, outside the square root.

    Returns:
        An optax transformation; its first-order state has the dtype of the parameters.

    Example:
        >>> optimizer = amsgrad_torch(0.1)
        >>> params = {"w": jnp.array([1.0, -1.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.array([3.0, 0.0])}, state)
        >>> [f"{u:.4f}" for u in updates["w"]]
        ['-0.1000', '-0.0000']
    """
    return optax.chain(
        scale_by_amsgrad_torch(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)
    )


def _sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with decay added to the gradient, in front of the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(learning_rate, momentum or None, nesterov),
    )


class _Entry(NamedTuple):
    make: Callable[..., optax.GradientTransformation]
    parameters: tuple[str, ...]


_TABLE: Mapping[str, _Entry] = {
    "amsgrad_torch": _Entry(amsgrad_torch, ("b1", "b2", "eps")),
    "amsgrad": _Entry(optax.amsgrad, ("b1", "b2", "eps")),
    "adam": _Entry(optax.adam, ("b1", "b2", "eps")),
    "adamw": _Entry(optax.adamw, ("b1", "b2", "eps", "weight_decay")),
    "lion": _Entry(optax.lion, ("b1", "b2", "weight_decay")),
    "sgd": _Entry(_sgd, ("momentum", "nesterov", "weight_decay")),
}

NAMES: tuple[str, ...] = tuple(_TABLE)
"""The optimizers that `create` knows."""


def parameters(name: str) -> dict[str, Any]:
    """The parameters that the optimizer `name` takes besides the learning rate, and their defaults.

    Example:
        >>> parameters("sgd")
        {'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0}
    """
    entry = _TABLE[name]
    signature = inspect.signature(entry.make).parameters
    return {key: signature[key].default for key in entry.parameters}


def create(name: str, learning_rate: optax.ScalarOrSchedule, **chosen: Any) -> EntryWise:
    """The optimizer `name`.

    Args:
        name: one of `NAMES`. `amsgrad_torch` is PyTorch's AMSGrad, `amsgrad` is optax's.
        learning_rate: a number or an optax schedule.
        **chosen: its parameters (see `parameters`); None means the default.

    Returns:
        An optax transformation, known to be entry-wise.

    Raises:
        UserError: unknown name, or a parameter which this optimizer does not take.

    Example:
        >>> optimizer = create("adamw", 1e-3, weight_decay=1e-4, b1=None)
    """
    make, chosen = _chosen(name, chosen)
    return EntryWise(*optax.with_extra_args_support(make(learning_rate, **chosen)))


def adjustable(name: str, learning_rate: float, **chosen: Any) -> EntryWise:
    """`create`, with the learning rate in the state: `optax.tree.set(state, learning_rate=...)`.

    Example:
        >>> optimizer = adjustable("sgd", 0.5)
        >>> state = optax.tree.set(optimizer.init(jnp.zeros(1)), learning_rate=jnp.float32(0.25))
        >>> optimizer.update(jnp.ones(1), state)[0]
        Array([-0.25], dtype=float32)
    """
    make, chosen = _chosen(name, chosen)
    inject = optax.inject_hyperparams(make, static_args=tuple(parameters(name)))
    return EntryWise(*inject(learning_rate=learning_rate, **chosen))


def _chosen(
    name: str, chosen: dict[str, Any]
) -> tuple[Callable[..., optax.GradientTransformation], dict[str, Any]]:
    if name not in _TABLE:
        raise UserError(f"unknown optimizer {name!r}; known: {', '.join(NAMES)}")
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if foreign := sorted(set(chosen) - set(_TABLE[name].parameters)):
        raise UserError(
            f"optimizer {name!r} takes no {', '.join(foreign)}; "
            f"it takes {', '.join(_TABLE[name].parameters)}"
        )
    return _TABLE[name].make, chosen


def piecewise(
    learning_rate: float, boundaries: Sequence[int], decay: float, steps_per_epoch: int
) -> optax.Schedule:
    """A learning rate that is multiplied by `decay` after each of `boundaries`, counted in epochs.

    Args:
        learning_rate: the rate of the first epoch.
        boundaries: numbers of full epochs: `(40, 80)` changes the rate with the first batch of
            epochs 41 and 81, as PyTorch's `MultiStepLR(milestones=[40, 80])`.
        decay: the factor.
        steps_per_epoch: optimizer steps in an epoch.

    Returns:
        A schedule from the number of steps taken to the rate.

    Example:
        >>> schedule = piecewise(0.5, (2,), 0.1, steps_per_epoch=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 19, 20)]
        [0.5, 0.5, 0.05]
    """
    steps = (epoch * steps_per_epoch for epoch in boundaries)
    reached = {step: decay for step in steps if step < 2**31}  # they are counted in int32
    return optax.piecewise_constant_schedule(learning_rate, reached)

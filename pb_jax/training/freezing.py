"""When masks are made, and around which optimizer: the `freeze.*` part of an experiment."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pb_jax
from pb_jax.errors import UserError
from pb_jax.training import compact
from pb_jax.training.task import Order

_WORTH_IT = 0.9  # of the dense state's bytes: else it is not worth a compilation


@dataclasses.dataclass(frozen=True)
class Freezing:
    """A rule and its schedule. Epochs are counted from 1.

    Attributes:
        rule: what chooses the weights that go on training.
        steps_per_epoch: updates in an epoch.
        start_epoch: its first batch makes the mask, and that batch's update is masked already:
            3 means two full epochs of full training.
        refresh_epochs: epochs between new masks; None: one mask.
        stop_epoch: full training again from its first batch on; None: never.
        mode: "updates" (frozen weights do not move) or "gradients" (only their gradients are
            zeroed, in front of the optimizer, as in the paper's appendix).
        batches: how many batches of the epoch a mask is judged by: the rule sees the means of
            their magnitudes.
        batch_size: examples in each of them; None: as in a step.
        alpha: α, the unit of x = abs(gradient) / α in reports.
        seed: for rules that draw at random.
        compact: whether the optimizer's state is cut down to what trains once a mask is made: see
            `pb_jax.training.compact`. None: where that takes at most 0.9 of the dense state's
            bytes and changes nothing but rounding, which asks for mode "updates", one mask for
            good, and an optimizer that is element-wise. True: always; weights that train again,
            by another mask or from `stop_epoch` on, then have moments of zero.

    Raises:
        ValueError: `compact` is True and `mode` is not "updates".

    Example:
        >>> freezing = Freezing(pb_jax.quantile(0.5), steps_per_epoch=10, refresh_epochs=2)
        >>> [epoch for epoch in range(1, 7) if freezing.makes_mask(epoch)]
        [3, 5]
    """

    rule: pb_jax.Rule
    steps_per_epoch: int
    start_epoch: int = 3
    refresh_epochs: int | None = None
    stop_epoch: int | None = None
    mode: str = "updates"
    batches: int = 1
    batch_size: int | None = None
    alpha: float = 1.0
    seed: int = 0
    compact: bool | None = None

    def __post_init__(self) -> None:
        if self.compact and self.mode != "updates":
            raise ValueError(
                f"compact=True needs mode='updates', got mode={self.mode!r}: momentum of frozen "
                "weights goes on there"
            )

    def makes_mask(self, epoch: int) -> bool:
        """Whether the first batch of `epoch` makes a mask."""
        if epoch < self.start_epoch or (self.stop_epoch is not None and epoch >= self.stop_epoch):
            return False
        since = epoch - self.start_epoch
        return since == 0 if self.refresh_epochs is None else since % self.refresh_epochs == 0

    def releases(self, epoch: int) -> bool:
        """Whether full training is resumed with the first batch of `epoch`."""
        return epoch == self.stop_epoch

    @property
    def looks_further(self) -> bool:
        """Whether a mask is judged by other gradients than those of the step that makes it."""
        return self.batches > 1 or self.batch_size is not None

    def judged(self, order: Order) -> Order:
        """The batches that a mask is judged by, the epoch's first: at most what an epoch has.

        Args:
            order: of the epoch.

        Returns:
            As many as there are, of `batch_size` examples each; a sequence is cut where the longest
            of the steps that they are taken from is.
        """
        steps, size = order.rows.shape
        wanted = size if self.batch_size is None else self.batch_size
        count = min(self.batches, steps * size // wanted)
        starts = range(0, count * wanted, wanted)
        lengths = tuple(
            max(order.lengths[start // size : -(-(start + wanted) // size)]) for start in starts
        )
        rows = order.rows.reshape(-1)[: count * wanted].reshape(count, wanted)
        return Order(rows, lengths)

    def around(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer under partial backpropagation, as an optax transformation of its own.

        The loop takes its initial state from it, but makes the updates in parts (`select`, `hold`,
        `release`): it knows on the host when a mask is due, so that the ordinary step needs no
        branch. Both ways give the same bits.
        """

        def steps(epochs: int | None) -> int | None:
            return None if epochs is None else epochs * self.steps_per_epoch

        return pb_jax.partial_backprop(
            optimizer,
            rule=self.rule,
            start_step=(self.start_epoch - 1) * self.steps_per_epoch,
            refresh_every=steps(self.refresh_epochs),
            stop_step=steps(None if self.stop_epoch is None else self.stop_epoch - 1),
            freeze=self.mode,
            seed=self.seed,
        )

    def select(
        self, state: pb_jax.PartialBackpropState, judged: Any, params: Any
    ) -> pb_jax.Selection:
        """What the rule chooses at this step.

        Args:
            state: before the update.
            judged: gradients, or what stands for them.
            params: present parameters.
        """
        return self.rule(judged, params, key=self.key(state.count))

    def key(self, count: Any) -> jax.Array:
        """Of the random rules, for a mask that is made after `count` updates."""
        return jax.random.fold_in(jax.random.key(self.seed), count)

    def hold(
        self,
        optimizer: optax.GradientTransformation,
        grads: Any,
        state: pb_jax.PartialBackpropState,
        params: Any,
    ) -> tuple[Any, pb_jax.PartialBackpropState]:
        """An update under the mask that is in `state`.

        Args:
            optimizer: what `around` was given.
            grads: of the whole model.
            state: its mask is used as it is.
            params: present parameters.

        Returns:
            Updates and the new state, as an optax `update` does.
        """
        inner = optax.with_extra_args_support(optimizer)
        if self.mode == "updates":
            frozen = pb_jax.freeze_elements(inner, state.mask)
            held = pb_jax.FreezeElementsState(state.mask, state.inner_state)
            updates, held = frozen.update(grads, held, params)
            assert isinstance(held, pb_jax.FreezeElementsState)
            inner_state = held.inner_state
        else:
            masked = jax.tree.map(lambda g, trains: jnp.where(trains, g, 0.0), grads, state.mask)
            updates, inner_state = inner.update(masked, state.inner_state, params)
        count = optax.safe_increment(state.count)
        return updates, state._replace(count=count, inner_state=inner_state)

    def release(self, state: pb_jax.PartialBackpropState) -> pb_jax.PartialBackpropState:
        """The state with nothing frozen."""
        return state._replace(
            mask=jax.tree.map(jnp.ones_like, state.mask),
            threshold=jax.tree.map(lambda t: jnp.full_like(t, jnp.nan), state.threshold),
        )

    def check_optimizer(self, optimizer: optax.GradientTransformation, params: Any) -> None:
        """Raise a `UserError` where `compact` is True and the optimizer does not go with it.

        It is tried with every other weight frozen: see `pb_jax.compact`.

        Args:
            optimizer: that of full training.
            params: pytree of arrays, or of their shapes and dtypes.
        """
        if self.compact:
            mask = jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape) % 2 == 0, params)
            try:
                compact.compact_shapes(optimizer, mask, params, check=True)
            except ValueError as error:
                raise _unfit(error) from error

    def compacted(
        self,
        optimizer: optax.GradientTransformation,
        state: pb_jax.PartialBackpropState,
        params: Any,
    ) -> tuple[pb_jax.PartialBackpropState, str]:
        """The state with which to go on after a mask was made. Not to be traced.

        Args:
            optimizer: what `around` was given.
            state: of the dense form, with the mask.
            params: present parameters.

        Returns:
            The state in its compact form, or as it was given where `compact` says so; and, in words
            for the user, what was done, or why it was not; "" where nothing was to be done.

        Raises:
            UserError: `compact` is True and the optimizer is not element-wise.
        """
        changing = self.refresh_epochs is not None or self.stop_epoch is not None
        whole = self.mode != "updates" or changing if self.compact is None else not self.compact
        if whole:
            return state, ""
        before = compact.size_of(state)
        try:
            if not self.compact:
                mask = jax.device_get(state.mask)
                shapes = compact.compact_shapes(optimizer, mask, params, check=False)
                if (after := compact.size_of(shapes)) > _WORTH_IT * before:
                    return state, f"optimizer state stays dense: {_sizes(before, after)} at best"
            # True has been tried before training.
            small = compact.to_compact(optimizer, state, params, check=not self.compact)
        except ValueError as error:
            if self.compact:
                raise _unfit(error) from error
            return state, f"optimizer state stays dense: {error}"
        return small, f"optimizer state compacted: {_sizes(before, compact.size_of(small))}"

    def expanded(
        self,
        optimizer: optax.GradientTransformation,
        state: pb_jax.PartialBackpropState,
        params: Any,
    ) -> pb_jax.PartialBackpropState:
        """The dense form of a state of the compact form. Not to be traced."""
        return compact.to_dense(optimizer, state, params)


def _sizes(before: int, after: int) -> str:
    return f"{compact.megabytes(before)} -> {compact.megabytes(after)}"


def _unfit(error: ValueError) -> UserError:
    return UserError(f"freeze.compact=True does not go with this optimizer: {error}")

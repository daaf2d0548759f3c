"""When masks are made, and around which optimizer: the `freeze.*` part of an experiment."""

import dataclasses

import optax

import pb_jax


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
        batches: how many of the epoch's batches a mask is judged by.
        alpha: α, the unit of x = abs(gradient) / α in reports.

    Example:
        >>> freezing = Freezing(pb_jax.quantile(0.5), steps_per_epoch=10, refresh_epochs=2)
        >>> [epoch for epoch in range(1, 7) if freezing.makes_mask(epoch)]
        [3, 5]
    """

    rule: "pb_jax.Rule"
    steps_per_epoch: int
    start_epoch: int = 3
    refresh_epochs: int | None = None
    stop_epoch: int | None = None
    mode: str = "updates"
    batches: int = 1
    alpha: float = 1.0

    def makes_mask(self, epoch: int) -> bool:
        """Whether the first batch of `epoch` makes a mask."""
        if epoch < self.start_epoch or (self.stop_epoch is not None and epoch >= self.stop_epoch):
            return False
        since = epoch - self.start_epoch
        return since == 0 if self.refresh_epochs is None else since % self.refresh_epochs == 0

    def around(
        self, optimizer: optax.GradientTransformation, seed: int = 0
    ) -> optax.GradientTransformation:
        """The optimizer under partial backpropagation; `seed` is for random rules."""

        def steps(epochs: int | None) -> int | None:
            return None if epochs is None else epochs * self.steps_per_epoch

        return pb_jax.partial_backprop(
            optimizer,
            rule=self.rule,
            start_step=(self.start_epoch - 1) * self.steps_per_epoch,
            refresh_every=steps(self.refresh_epochs),
            stop_step=steps(None if self.stop_epoch is None else self.stop_epoch - 1),
            freeze=self.mode,
            seed=seed,
        )

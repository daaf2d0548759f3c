"""A learning rate that falls when the score no longer rises."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The learning rate after epochs of given scores, and when to stop.

    Both are functions of the scores alone, so that a resumed run needs nothing but its records.

    Attributes:
        learning_rate: of the first epoch.
        decay: the factor after every `patience` epochs in a row without a better score than ever
            before.
        patience: see `decay`.
        stop: the number of such epochs after which training ends; None: never.

    Source: the captioner of the paper, section 4.2: x 0.8 after 3 epochs, stop after 10.

    Example:
        >>> plateau = Plateau(1.0, decay=0.5, patience=2, stop=4)
        >>> [plateau.rate([3, 4, 4, 3, 2, 1][:n]) for n in range(7)]
        [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
        >>> [plateau.over([3, 4, 4, 3, 2, 1][:n]) for n in range(7)]
        [False, False, False, False, False, False, True]
    """

    learning_rate: float
    decay: float
    patience: int
    stop: int | None = None

    def rate(self, scores: Sequence[float]) -> float:
        """Of the epoch that comes after those with `scores`."""
        times = sum(stale % self.patience == 0 for stale in _stale(scores) if stale)
        return self.learning_rate * self.decay**times

    def over(self, scores: Sequence[float]) -> bool:
        """Whether training is to end after the epochs with `scores`."""
        return self.stop is not None and bool(scores) and _stale(scores)[-1] >= self.stop


def _stale(scores: Sequence[float]) -> list[int]:
    """After each epoch: how many there have been since the best."""
    counts, best = [], float("-inf")
    for score in scores:
        counts.append(0 if score > best else sum(counts[-1:]) + 1)
        best = max(best, score)
    return counts

"""What another threshold would have frozen, by the histogram of the gradients behind a mask."""

from typing import NamedTuple

import numpy as np

from pb_jax.reports.run_folder import Mask


class Shares(NamedTuple):
    """The gradients of all weights that a mask was made by, as a distribution.

    Attributes:
        edges: of the histogram of x = abs(gradient) / α, 16 bins a decade.
        below: share of all weights whose x is at most each edge, zero gradients among them.
    """

    edges: np.ndarray
    below: np.ndarray

    def at(self, threshold: float) -> float:
        """Share that a threshold freezes, between two edges in proportion to the logarithm.

        >>> round(Shares(np.array([1.0, 10.0]), np.array([0.2, 0.8])).at(10**0.5), 3)
        0.5
        """
        return float(np.interp(np.log(threshold), np.log(self.edges), self.below))

    def threshold(self, share: float) -> float:
        """The threshold that freezes a share; the inverse of `at`.

        >>> round(Shares(np.array([1.0, 10.0]), np.array([0.2, 0.8])).threshold(0.5), 3)
        3.162
        """
        return float(np.exp(np.interp(share, self.below, np.log(self.edges))))


def of(mask: Mask) -> Shares:
    """What was seen when a mask was made, of all leaves together."""
    seen = mask.zeros.sum() + np.concatenate([[0], np.cumsum(mask.counts.sum(axis=0))])
    return Shares(mask.edges, seen / mask.sizes.sum())

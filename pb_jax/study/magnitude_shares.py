"""What another threshold would have frozen, by the histogram of the gradients behind a mask."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pb_jax.errors import UserError
from pb_jax.reports.run_folder import arrays


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


def read(run: Path) -> Shares | None:
    """Of a run's first mask; None where its folder keeps none.

    Args:
        run: the run's folder, with `mask_step_{step}.npz`: see `pb_jax.training`.

    Raises:
        UserError: the file is damaged.
    """
    steps = {int(path.stem.rpartition("_")[2]): path for path in run.glob("mask_step_*.npz")}
    if not steps:
        return None
    path = steps[min(steps)]
    try:
        content = arrays(path)
        counts = content["hist_counts"].sum(axis=0)
        zeros, total = content["leaf_zeros"].sum(), content["leaf_sizes"].sum()
        below = (zeros + np.concatenate([[0], np.cumsum(counts)])) / total
        return Shares(content["hist_edges"], below)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from error

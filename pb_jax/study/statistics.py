"""Means over seeds, and differences seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: over the runs; NaN where there are none.
        sd: standard deviation of a single run (n - 1); None where there are fewer than two.
        n: number of runs.
    """

    mean: float
    sd: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of the values that are there.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([0.5, None])
        (Spread(mean=2.0, sd=1.0, n=3), Spread(mean=0.5, sd=None, n=1))
    """
    found = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not found:
        return Spread(math.nan, None, 0)
    mean = math.fsum(found) / len(found)
    if len(found) < 2:
        return Spread(mean, None, 1)
    return Spread(
        mean, math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (len(found) - 1)), len(found)
    )


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """Differences `values - others` of the seeds that both have: what runs share drops out.

    Example:
        >>> paired({0: 2.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 2.0})
        {0: 1.0, 1: 3.0}
    """
    return {seed: values[seed] - others[seed] for seed in values if seed in others}

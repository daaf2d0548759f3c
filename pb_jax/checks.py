"""Checks of arguments: plain errors that name the argument, its value and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_number(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    above: float | None = None,
    below: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Raise where `value` is no finite number within bounds; traced values pass.

    Raises:
        TypeError: `value` is no number (or no whole number, where `whole`).
        ValueError: `value` is out of bounds.

    >>> check_number("bins", 300, whole=True, least=2)
    >>> check_number("coverage", 1.5, above=0, most=1)
    Traceback (most recent call last):
    ...
    ValueError: coverage must be a number above 0 and at most 1, got 1.5
    """
    import jax  # a second, and not all who check something need it
    from jax.core import Tracer

    if isinstance(value, Tracer):
        return
    bounds = [("above", above), ("below", below), ("at least", least), ("at most", most)]
    limits = " and ".join(
        f"{word} {limit}" if isinstance(limit, int) else f"{word} {limit:g}"
        for word, limit in bounds
        if limit is not None
    )
    allowed = f"{name} must be a {'whole ' if whole else ''}number {limits}, got {value!r}"
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise TypeError(allowed)
    number = float(value)
    if not (
        math.isfinite(number)
        and (above is None or number > above)
        and (below is None or number < below)
        and (least is None or number >= least)
        and (most is None or number <= most)
    ):
        raise ValueError(allowed)


def check_choice(name: str, value: Any, choices: Sequence[Any], otherwise: str = "") -> None:
    """Raise a ValueError where `value` is none of `choices`.

    >>> check_choice("scope", "layer", ("global", "leaf"))
    Traceback (most recent call last):
    ...
    ValueError: scope must be 'global' or 'leaf', got 'layer'
    """
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {listed}{otherwise and ' '}{otherwise}, got {value!r}")

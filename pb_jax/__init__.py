"""Partial Backpropagation for JAX.

Train fully for a while, find by the gradients which single weights carry little, freeze those for
good and train the rest, under any optax optimizer:

    >>> import optax, pb_jax
    >>> tx = pb_jax.partial_backprop(
    ...     optax.adam(1e-3), rule=pb_jax.kde_otsu(learning_rate=1e-3), start_step=1000
    ... )
"""

from typing import TYPE_CHECKING

from pb_jax.lazily import lazily

if TYPE_CHECKING:
    from pb_jax.api import *  # noqa: F403 (what it offers is said there)
else:
    __getattr__, __dir__ = lazily(__name__, "pb_jax.api")

__version__ = "0.1.0"

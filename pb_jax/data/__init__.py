"""Datasets: real images as arrays, prepared once and read from disk ever after.

`load` is what programs call; `python -m pb_jax.data` prepares and lists.
"""

from pb_jax.data.dataset import Dataset, Split
from pb_jax.data.errors import DataError
from pb_jax.data.loading import load
from pb_jax.data.normalization import normalize
from pb_jax.data.specs import DATASETS

__all__ = ["DATASETS", "DataError", "Dataset", "Split", "load", "normalize"]

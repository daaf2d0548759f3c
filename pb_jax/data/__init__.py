"""Datasets: real images as arrays, prepared once and read from disk ever after.

`load` and `load_captions` are what programs call; `python -m pb_jax.data` prepares and lists.
"""

from pb_jax.data.at_rest import root_dir
from pb_jax.data.captions import CaptionDataset, CaptionSplit, normalize_caption
from pb_jax.data.dataset import Dataset, Split
from pb_jax.data.errors import DataError
from pb_jax.data.features import compute_or_map
from pb_jax.data.loading import load, load_captions
from pb_jax.data.normalization import normalize
from pb_jax.data.pictures import ImageSource
from pb_jax.data.specs import CAPTION_DATASETS, DATASETS
from pb_jax.data.vocabulary import Vocabulary

__all__ = [
    "CAPTION_DATASETS",
    "DATASETS",
    "CaptionDataset",
    "CaptionSplit",
    "DataError",
    "Dataset",
    "ImageSource",
    "Split",
    "Vocabulary",
    "compute_or_map",
    "load",
    "load_captions",
    "normalize",
    "normalize_caption",
    "root_dir",
]

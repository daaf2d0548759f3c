"""Quickstart: LeNet-5 on scikit-learn's digits (1,797 real 8x8 images). Nothing to download.

Command: `python train.py --config configs/digits_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/digits_full`.

Hardware: two CPU cores do; about a minute with start-up and figures.

Expected (seed 0, 2026-11-22): 98.3 % of the 360 test images with 81.0 % of the weights frozen,
98.9 % with full training, 98.6 % with as many random weights frozen. One image is 0.28 points.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration: the paper's, with epochs and batches for 1,500 images."""
    config = paper(model="lenet5", dataset="digits")
    config.epochs = 30
    config.batch_size = 50
    config.optimizer.boundaries = (20,)
    config.checkpoint.every_epochs = 10
    return config

"""Quickstart: LeNet-5 on scikit-learn's digits (1,797 real 8x8 images). Nothing to download.

Command: `python train.py --config configs/digits_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/digits_full`.

Hardware: two CPU cores do.
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

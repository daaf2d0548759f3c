"""DenseNet-121 (growth rate 12) on CIFAR-10 with the paper's settings.

Command: `python train.py --config configs/densenet121_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/densenet121_full`. A short run on a CPU:
`--config.epochs=3 --config.dataset.limit_train=5000`.

Hardware: a GPU or TPU for all 110 epochs.

Expected: the paper reports 88.20 % for full training, and 87.63 % with 69.07 % of the weights
frozen.
The short run (seed 0, 2026-11-22): 78.0 % frozen at t = 1.05.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="densenet121", dataset="cifar10")

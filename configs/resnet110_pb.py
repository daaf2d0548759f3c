"""ResNet-110 on CIFAR-10 with the paper's settings.

Command: `python train.py --config configs/resnet110_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/resnet110_full`. A short run on a CPU:
`--config.epochs=3 --config.dataset.limit_train=5000`.

Hardware: a GPU or TPU for all 110 epochs.

Expected: the paper reports 83.72 % for full training, and 82.81 % with 49.85 % of the weights
frozen.
The short run (seed 0, 2026-11-22): 71.5 % frozen at t = 1.28.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="resnet110", dataset="cifar10")

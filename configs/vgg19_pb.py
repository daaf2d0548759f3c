"""VGG19 with batch norm on CIFAR-10 with the paper's settings.

Command: `python train.py --config configs/vgg19_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/vgg19_full`. A short run on a CPU:
`--config.epochs=3 --config.dataset.limit_train=5000`.

Over three seeds, with the paper's threshold and share and random masks of the same size, resumable:
`python study.py --config configs/vgg19_pb.py --seeds 3 --rules
none,kde_otsu,random,fixed_threshold:threshold=0.04,quantile:frozen=0.7968,random:frozen=0.7968`
(in one line; `--grid freeze.coverage=0.8,0.9,0.95,0.99` for the share's effect). On a GPU:
`python -m benchmarks.gpu.tables --data DIR --out DIR --only tables-vgg19,paper-vgg19`.

Hardware: a GPU or TPU for all 110 epochs.

Expected: the paper reports 88.12 % for full training, and 87.88 % with 79.68 % of the weights
frozen.
The short run (seed 0, 2026-11-22): 86.4 % frozen at t = 0.104.
Four epochs of all images (seed 0, 2026-11-23): 76.54 % in full, 76.38 % with 84.7 % frozen, 76.36 %
with as many random weights frozen.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="vgg19", dataset="cifar10")

"""ResNet-110 on CIFAR-10 with the paper's settings.

Command: `python train.py --config configs/resnet110_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/resnet110_full`. A short run on a CPU:
`--config.epochs=3 --config.dataset.limit_train=5000`.

Over three seeds, with the paper's threshold and share and random masks of the same size, resumable:
`python study.py --config configs/resnet110_pb.py --seeds 3 --rules
none,kde_otsu,random,fixed_threshold:threshold=0.19,quantile:frozen=0.4985,random:frozen=0.4985`
(in one line; `--grid freeze.coverage=0.8,0.9,0.95,0.99` for the share's effect). On a GPU:
`python -m benchmarks.gpu.tables --data DIR --out DIR --only tables-resnet110,paper-resnet110`.

Hardware: a GPU or TPU for all 110 epochs.

Expected: the paper reports 83.72 % for full training, and 82.81 % with 49.85 % of the weights
frozen.
The short run (seed 0, 2026-11-22): 71.5 % frozen at t = 1.28.
Four epochs of all images (seed 0, 2026-11-23): 76.83 % in full, 74.54 % with 73.3 % frozen, 77.30 %
with as many random weights frozen.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="resnet110", dataset="cifar10")

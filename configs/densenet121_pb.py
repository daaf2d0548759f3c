"""DenseNet-121 (growth rate 12) on CIFAR-10 with the paper's settings.

Command: `python train.py --config configs/densenet121_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/densenet121_full`. A short run on a CPU:
`--config.epochs=3 --config.dataset.limit_train=5000`.

Over three seeds, with the paper's threshold and share and random masks of the same size, resumable:
`python study.py --config configs/densenet121_pb.py --seeds 3 --rules
none,kde_otsu,random,fixed_threshold:threshold=0.45,quantile:frozen=0.6907,random:frozen=0.6907`
(in one line; `--grid freeze.coverage=0.8,0.9,0.95,0.99` for the share's effect). On a GPU:
`python -m benchmarks.gpu.tables --data DIR --out DIR --only tables-densenet121,paper-densenet121`.

Hardware: a GPU or TPU for all 110 epochs.

Expected: the paper reports 88.20 % for full training, and 87.63 % with 69.07 % of the weights
frozen.
The short run (seed 0, 2026-11-22): 78.0 % frozen at t = 1.05.
Four epochs of all images (seed 0, 2026-11-23): 80.95 % in full, 81.30 % with 77.8 % frozen, 83.77 %
with as many random weights frozen.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="densenet121", dataset="cifar10")

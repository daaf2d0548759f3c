"""LeNet-5 on MNIST with the paper's settings: partial backpropagation from the third epoch on.

Command: `python train.py --config configs/lenet5_pb.py`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/lenet5_full`. A short run: `--config.epochs=12`.

Over three seeds, with the paper's threshold and share and random masks of the same size, resumable:
`python study.py --config configs/lenet5_pb.py --seeds 3 --rules
none,kde_otsu,random,fixed_threshold:threshold=0.5,quantile:frozen=0.937,random:frozen=0.937`
(in one line; `--grid freeze.coverage=0.8,0.9,0.95,0.99` for the share's effect). On a GPU:
`python -m benchmarks.gpu.tables --data DIR --out DIR --only tables-lenet5,paper-lenet5`.

Hardware: two CPU cores do, 5 to 10 s an epoch.

Expected: the paper reports 99.25 % for full training, and 99.22 % with 93.70 % of the weights
frozen. Measured (three seeds, 2026-11-22): 99.24 ± 0.07 % in full, 99.13 ± 0.04 % with 83.9 %
frozen, 99.16 ± 0.10 % with as many random weights frozen.
"""

from ml_collections import ConfigDict

from configs.common import paper


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    return paper(model="lenet5", dataset="mnist")

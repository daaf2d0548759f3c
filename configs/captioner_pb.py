"""The paper's captioner on Flickr8k: soft attention, an LSTM and a frozen encoder.

Command, with `DIR/flickr8k/Flicker8k_Dataset/*.jpg` and `DIR/flickr8k/Flickr8k_text/*.txt`:
`python train.py --config configs/captioner_pb.py --config.dataset.source_dir=DIR \
--config.encoder.weights=efficientnet_lite0.npz`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/captioner_full`.

Hardware: two CPU cores do; at most 15 epochs of about five minutes, on one core each.

Expected (seed 0, 2026-11-22): test BLEU-4 0.214 with full training, 0.208 with
`--config.freeze.rule=quantile --config.freeze.frozen=0.6181`, the paper's frozen share. The paper
reports 0.099 and 0.101.
"""

from ml_collections import ConfigDict

from configs.common import paper_captioner


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    config = paper_captioner("flickr8k")
    config.encoder.name = "efficientnet_lite0"
    return config

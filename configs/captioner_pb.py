"""The paper's captioner on Flickr8k: soft attention, an LSTM and a frozen encoder.

Command, with `DIR/flickr8k/Flicker8k_Dataset/*.jpg` and `DIR/flickr8k/Flickr8k_text/*.txt`:
`python train.py --config configs/captioner_pb.py --config.dataset.source_dir=DIR \
--config.encoder.weights=efficientnet_lite0.npz`. Full training, to compare with:
`--config.freeze.rule=none --workdir runs/captioner_full`.

Hardware: two CPU cores do.
"""

from ml_collections import ConfigDict

from configs.common import paper_captioner


def get_config() -> ConfigDict:
    """The experiment's configuration."""
    config = paper_captioner("flickr8k")
    config.encoder.name = "efficientnet_lite0"
    return config

"""Experiments: one file each, with a function `get_config`. Run them with `train.py --config`."""

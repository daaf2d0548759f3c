"""Encoders: networks that turn pictures into grids of features, for a captioner to look at."""

from models.encoders.encoder import Encoder, compiled
from models.encoders.registry import NAMES, create

__all__ = ["NAMES", "Encoder", "compiled", "create"]

"""The paper's convolutional networks, as flax.nnx modules; used from a checkout."""

from models.convolution import compiler_options
from models.registry import NAMES, create
from models.torch_weights import load_torch, to_torch

__all__ = ["NAMES", "compiler_options", "create", "load_torch", "to_torch"]

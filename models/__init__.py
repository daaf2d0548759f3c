"""The paper's convolutional networks, as flax.nnx modules; used from a checkout."""

from models import encoders
from models.captioner import Captioner, DecoderState
from models.convolution import compiler_options
from models.host_memory import reuse_host_memory
from models.registry import NAMES, create, register
from models.torch_weights import load_torch, to_torch

__all__ = [
    "NAMES",
    "Captioner",
    "DecoderState",
    "compiler_options",
    "create",
    "encoders",
    "load_torch",
    "register",
    "reuse_host_memory",
    "to_torch",
]

"""Where the real data is, and strictness that a user's program may have too."""

import os
import signal
from pathlib import Path

import jax
import pytest

# Several devices for the tests of sharding; all else runs on the first of them, as on the only one.
jax.config.update("jax_num_cpu_devices", 8)

# A shell has what it starts in the background ignore Ctrl-C: this process and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} to the folder with the original files")
    return Path(value)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with mnist/, cifar-10-batches-py/ and flickr8k/."""
    return _folder("PB_JAX_DATA")


@pytest.fixture(scope="session")
def torch_reference() -> Path:
    """PyTorch's LeNet-5: torch_lenet5.npz."""
    return _folder("PB_JAX_REFERENCE") / "torch_lenet5.npz"

"""Where the real data is, what XLA has compiled, and how strict a user's program may be."""

import gc
import os
import signal
import tempfile
from pathlib import Path

import jax
import pytest

# Several devices for the tests of sharding; all else runs on the first of them, as on the only one.
jax.config.update("jax_num_cpu_devices", 8)

# Most of the tests' time is XLA's, which is asked for the same again and again. A folder for each
# process: an entry that another one is writing would be read half.
_COMPILED = tempfile.TemporaryDirectory(prefix="pb_jax_compiled_")
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A shell has what it starts in the background ignore Ctrl-C: this process and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end; jaxprs are many, and few of them in circles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_unconfigure() -> None:
    """Remove what was compiled."""
    _COMPILED.cleanup()


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

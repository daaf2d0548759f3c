"""Checkpoints as they lie on the disk: arrays by name, read without the model's code.

Nothing here writes, so that the checkpoints of a run that is training can be looked at. The layout
is in `docs/checkpoints.md`.
"""

import functools
import json
import logging
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pb_jax.files import read_json, write_json

STATE, RECORD, DELTA, METRICS, SUMS = "state", "record", "delta", "metrics", "checksums"
"""Items of a checkpoint."""
FILES = "files.json"
"""The file, beside the items, with the checksums of their files."""
INTERRUPTED = "interrupted"
"""The folder, among the checkpoints, of the one made inside an epoch."""


@functools.cache
def quiet() -> None:
    """Keep from the user what orbax logs and what its failed reads leave: what matters is raised.

    The first array that cannot be read closes orbax's event loop, while tensorstore reads others:
    their results find it closed, and their coroutines are collected later, anywhere.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if not _is_left_by_a_read(unraisable):
            report(unraisable)

    sys.unraisablehook = report_others


def _is_left_by_a_read(unraisable: Any) -> bool:
    """Whether an exception that nobody can catch is of a read that orbax gave up."""
    if isinstance(unraisable.object, types.CoroutineType):
        return "orbax" in Path(unraisable.object.cr_code.co_filename).parts
    closed = isinstance(unraisable.exc_value, RuntimeError)
    return closed and str(unraisable.exc_value) == "Event loop is closed"


def flat(state: Any) -> dict[str, jax.Array]:
    """Leaves by the name of their path; random keys as the integers that they are made of.

    >>> flat({"params": {"conv1.kernel": jnp.ones(1)}})
    {'params.conv1.kernel': Array([1.], dtype=float32)}
    """
    return {name_of(path): plain(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def unflat(found: dict[str, Any], like: Any) -> Any:
    """The inverse of `flat`, for a tree of the structure of `like`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: as_like(found[name_of(path)], leaf), like
    )


def name_of(path: Any) -> str:
    """A leaf's path as its name in a checkpoint."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def as_like(leaf: Any, like: Any) -> Any:
    """What is stored as a leaf of the kind of `like`: a random key where it is one."""
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if is_key(like) else leaf


def put(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A copy on the devices of `sharding`; of several processes each fills its own."""
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: np.array(whole[index]))


def plain(leaf: Any) -> jax.Array:
    """A leaf as it is stored: the integers that a random key is made of."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a random key."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def epochs(folder: Path) -> list[int]:
    """Epochs of which `folder` holds a checkpoint, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def is_delta(checkpoint: Path) -> bool:
    """Whether a checkpoint holds only what trains; `checkpoint` is its folder."""
    return (checkpoint / DELTA).is_dir()


def item(checkpoint: Path, name: str) -> Any:
    """One of a checkpoint's items in JSON: `RECORD`, `DELTA`, `METRICS` or `SUMS`.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    file = METRICS if name == METRICS else "metadata"
    found = read_json(checkpoint / name / file)
    if name in (RECORD, DELTA):
        check(checkpoint, {name: found})
    return found


def checksums(content: Mapping[str, Any]) -> dict[str, int]:
    """What `SUMS` holds: the CRC-32 of each array, with dtype and shape, and of each JSON item.

    Arrays that other processes hold a part of are left out: see `sum_files`.

    Args:
        content: arrays, or what JSON can hold, by name.

    Example:
        >>> checksums({"record": {"epoch": 1}, "params.bias": np.zeros(2, np.float32)})
        {'record': 2492569672, 'params.bias': 4026792908}
    """
    return {name: _crc(one) for name, one in content.items() if _is_whole(one)}


def check(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Raise a ValueError if a part of a checkpoint is not what was saved.

    Args:
        checkpoint: its folder. Older ones have no checksums: then nothing is compared.
        content: of it, by name: see `checksums`.
    """
    if (checkpoint / SUMS).is_dir():
        saved = item(checkpoint, SUMS)
        for name, found in checksums(content).items():
            if name in saved and saved[name] != found:
                raise ValueError(f"{name} is not what was saved: its checksum differs")


def sum_files(checkpoint: Path) -> None:
    """Write `FILES`, by which damage is seen before tensorstore is given what may crash it.

    It covers arrays that `checksums` leaves out, too: those that several processes hold in parts.

    Args:
        checkpoint: folder of one that is whole, but for this.
    """
    write_json(checkpoint / FILES, _files(checkpoint))


def check_files(checkpoint: Path) -> None:
    """Raise a ValueError if a file of a checkpoint is not what was saved.

    Args:
        checkpoint: its folder. Without `FILES` nothing is compared.
    """
    if (checkpoint / FILES).exists():
        saved, found = read_json(checkpoint / FILES), _files(checkpoint)
        for name in sorted(saved.keys() | found.keys()):
            if saved.get(name) != found.get(name):
                raise ValueError(f"{name} is not what was saved: its checksum differs")


def _files(checkpoint: Path) -> dict[str, list[int]]:
    """Bytes and CRC-32 of the files of all items but the metrics, which may be written again."""
    found = {}
    for item in (STATE, RECORD, DELTA, SUMS):
        for path in sorted((checkpoint / item).rglob("*")):
            if path.is_file():
                size = crc = 0
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        size, crc = size + len(block), zlib.crc32(block, crc)
                found[path.relative_to(checkpoint).as_posix()] = [size, crc]
    return found


def _is_whole(one: Any) -> bool:
    if not isinstance(one, jax.Array):
        return True
    return one.is_fully_addressable or one.is_fully_replicated


def _crc(one: Any) -> int:
    if not hasattr(one, "dtype"):
        return zlib.crc32(json.dumps(one, sort_keys=True).encode())
    array = np.asarray(one)
    kind = zlib.crc32(f"{array.dtype} {array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, kind)


def arrays(checkpoint: Path, wanted: Callable[[str], bool] = bool) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint's state, in the shapes and dtypes in which they were saved.

    Args:
        checkpoint: its folder.
        wanted: says by its name whether an array is.
    """
    import orbax.checkpoint as ocp  # a second or two, so not at the top

    quiet()
    check_files(checkpoint)
    path = (checkpoint / STATE).resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        known: dict[str, Any] = dict(checkpointer.metadata(path).item_metadata.tree)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        shapes = {
            name: jax.ShapeDtypeStruct(known[name].shape, known[name].dtype)
            for name in filter(wanted, known)
        }
        on_host = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}
        args = ocp.args.PyTreeRestore(
            item=shapes,  # pyright: ignore[reportCallIssue]
            restore_args=on_host,  # pyright: ignore[reportCallIssue]
            partial_restore=True,  # pyright: ignore[reportCallIssue]
        )
        found = checkpointer.restore(path, args=args)
    found = {name: np.asarray(array) for name, array in found.items()}
    check(checkpoint, found)
    if (checkpoint / SUMS).is_dir():
        saved = set(filter(wanted, item(checkpoint, SUMS).keys() - {RECORD, DELTA}))
        if missing := sorted(saved - found.keys()):
            raise ValueError(f"{missing[0]} is not there, but was saved")
    return found

"""One process at a time in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pb_jax.data.progress import Progress


@contextlib.contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold `folder`'s lock; the system drops it when the process ends, however it ends.

    Args:
        folder: made where it is missing.
        progress: told where another process holds the lock, or where there are no locks.

    Raises:
        OSError: the folder cannot be written.
    """
    import fcntl  # where it is missing (Windows), built-in data still load

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another process that is preparing {folder.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems know no locks
            progress.say(f"{folder}: {error.strerror}; let only one process prepare {folder.name}")
        yield

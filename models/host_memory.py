"""Memory that a step on CPU frees and needs again at the next."""

import ctypes
import mmap
import os
import platform
from pathlib import Path

# mallopt(3), glibc's malloc.h.
_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = 1, -1, -4, -8
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_STRICT = "2"  # the kernel counts what is reserved as used


def reuse_host_memory() -> bool:
    """Have the process keep freed memory for its next allocation instead of returning it.

    XLA:CPU allocates the scratch space of a step, up to gigabytes, anew each time. glibc gets it
    from the kernel page by page, and returns it afterwards: that can take as long as the step.
    Afterwards the process stays at its largest size, of which a step may take a new part now and
    then: glibc cuts the ends off aligned memory, and holds a few of them back. Call it once, before
    JAX starts its threads.

    It also asks for that memory to lie on huge pages, where Linux gives them to who asks
    (`/sys/kernel/mm/transparent_hugepage/enabled`: `madvise`). For that addresses for half of the
    machine's memory are reserved; memory is taken when it is written. It is left out where a limit
    is set on addresses or data (`ulimit`), or where the kernel counts them as used.

    Returns:
        Whether it was done: only glibc (Linux) can.

    Example:
        >>> import sys
        >>> reuse_host_memory() in ((True, False) if sys.platform == "linux" else (False,))
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        (_M_ARENA_MAX, 1),  # those of other threads than the first cannot grow to such sizes
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),  # never
        (_M_MXFAST, 0),  # ends that are cut off join what is free, and do not part it
    )
    done = [libc.mallopt(parameter, value) for parameter, value in settings]
    if all(done) and _may_reserve():
        _grow_on_huge_pages(libc)
    return all(done)


def _may_reserve() -> bool:
    """Whether addresses cost nothing until they are written to."""
    import resource  # Windows has none

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False
    return _OVERCOMMIT.is_file() and _OVERCOMMIT.read_text().strip() != _STRICT


def _grow_on_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow now, by what is not trimmed again, and ask for huge pages for that."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    if start := libc.malloc(size):
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (start + size - first) // mmap.PAGESIZE
        # A kernel without huge pages refuses: then the heap is as it was.
        libc.madvise(first, pages * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(start)

"""Memory that a step on CPU frees and needs again at the next."""

import ctypes
import platform

# mallopt(3), glibc's malloc.h.
_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = 1, -1, -4, -8


def reuse_host_memory() -> bool:
    """Have the process keep freed memory for its next allocation instead of returning it.

    XLA:CPU allocates the scratch space of a step, up to gigabytes, anew each time. glibc gets it
    from the kernel page by page, and returns it afterwards: that can take as long as the step.
    Afterwards the process stays at its largest size, of which a step may take a new part now and
    then: glibc cuts the ends off aligned memory, and holds a few of them back. Call it once, before
    JAX starts its threads.

    Returns:
        Whether it was done: only glibc (Linux) can.

    Example:
        >>> import sys
        >>> reuse_host_memory() in ((True, False) if sys.platform == "linux" else (False,))
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_ARENA_MAX, 1),  # those of other threads than the first cannot grow to such sizes
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),  # never
        (_M_MXFAST, 0),  # ends that are cut off join what is free, and do not part it
    )
    done = [mallopt(parameter, value) for parameter, value in settings]
    return all(done)

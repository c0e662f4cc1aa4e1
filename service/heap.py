"""The C library's heap, where bodies and pictures lie."""

import ctypes

_MOST_ARENAS = -8  # glibc's M_ARENA_MAX, of malloc.h


def share_one() -> None:
    """One heap for all threads, before there are any. glibc gives each thread one of its own, and what is freed in one
    stays in memory and is of no use to the others: of every body that the event loop frees, what the pool has read of
    it would be held beside it. Other C libraries have no such call.
    """
    try:
        limit = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    limit(_MOST_ARENAS, 1)

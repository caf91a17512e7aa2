"""A limit of memory that the process has been given (``ulimit -v``).

OpenBLAS, which NumPy and SciPy bring along, does not say that it gets no memory: it tries again for
ever, or ends the process. So it gets its buffers first, one for each thread that may ask for one,
and keeps them. A limit that leaves no room for these and for the libraries is refused.
"""

from __future__ import annotations

import os
import sys

from fskd_onnx.errors import FskdError

# In bytes: the libraries with all that they load, and what each thread takes (a stack, a heap, and
# the buffers of both copies of OpenBLAS), measured on Linux.
_LIBRARIES, _THREAD = 420 * 2**20, 120 * 2**20
# Unknowns of the systems that are solved: long enough for all threads to work at the same time.
_UNKNOWNS = 512
_SYSTEMS_PER_THREAD = 4


def prepare_for_memory_limit() -> None:
    """Let OpenBLAS take its buffers, where the memory of the process is limited.

    Raises:
        FskdError: the limit is too low.
    """
    limit = _limit()
    if limit is None:
        return
    least = least_memory()
    if limit < least:
        raise FskdError(
            f"the process may use {limit / 2**20:,.0f} MiB of address space and needs at least "
            f"{least / 2**20:,.0f} MiB; raise the limit (ulimit -v)"
        )
    import numpy as np
    import scipy.linalg

    from fskd_onnx.linalg.threads import parallel_map, threads_for

    system = np.eye(_UNKNOWNS) + 1

    def solve(_: int) -> None:
        scipy.linalg.cho_factor(system)
        np.linalg.solve(system, system)

    solve(0)
    with threads_for():
        for _ in parallel_map(solve, list(range(_SYSTEMS_PER_THREAD * (os.cpu_count() or 1)))):
            pass


def least_memory() -> int:
    """Return how many bytes of address space the program needs to do anything."""
    return _LIBRARIES + _THREAD * (os.cpu_count() or 1)


def _limit() -> int | None:
    """Return how many bytes of address space the process may use; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft

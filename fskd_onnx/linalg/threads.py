"""How many threads work on the systems of a block.

BLAS divides a large system among its own threads. Smaller ones lose more by that than they gain:
for them BLAS keeps to one thread, and several chunks of columns are worked on at the same time
(``parallel_map``). Either way there are as many threads as BLAS was set to use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from fskd_onnx.linalg.backends import backend

T = TypeVar("T")
S = TypeVar("S")

# Unknowns of a system from which on BLAS gains by several threads.
_WORTH_THREADS = 1500
_WORKERS: ContextVar[int] = ContextVar("workers", default=1)


@functools.cache
def _blas() -> tuple[ThreadpoolController, int]:
    """Return what sets BLAS's threads, and how many it was set to."""
    controller = ThreadpoolController().select(user_api="blas")
    return controller, max((info["num_threads"] for info in controller.info()), default=1)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fskd-onnx")


@contextmanager
def threads_for(unknowns: int) -> Iterator[None]:
    """Set the threads for systems of a size."""
    if unknowns >= _WORTH_THREADS or backend().has_own_threads:
        yield
        return
    controller, threads = _blas()
    token = _WORKERS.set(threads)
    try:
        with controller.limit(limits=1):
            yield
    finally:
        _WORKERS.reset(token)


def parallel_map(work: Callable[[T], S], items: Iterable[T]) -> Iterable[S]:
    """Apply a function to each of several items, in threads where the items are a list.

    Args:
        work: the function; it spends its time in NumPy, and does not call this function.
        items: a list, or an iterator, of which one item at a time is in memory.

    Returns:
        The results, in the order of the items.
    """
    threads = _WORKERS.get()
    if threads == 1 or not isinstance(items, list) or len(items) == 1:
        return map(work, items)
    # Each in a copy of the context, which holds the backend.
    pool = _pool(threads)
    futures = [pool.submit(copy_context().run, work, item) for item in items]
    return [future.result() for future in futures]

"""How many threads compute.

BLAS divides an operation among threads that wait for each other in loops. Where the processors have
other work as well, some of these threads do not run, and all others wait for them: beside one more
process on two processors, eigenvectors of a few hundred unknowns take tens of times as long
(``python -m tests.benchmarks.host``). So BLAS keeps to one thread, and tasks that do not need each
other run at the same time (``parallel_map``), as many as BLAS was set to use threads.

Only systems that are large and few are left to BLAS, where it has several threads even when one
processor is left to others.
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

# Unknowns of a system from which on BLAS gains by several threads, and how many those have to be.
_LARGE, _SEVERAL = 1500, 4
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
def threads_for(unknowns: int = 0) -> Iterator[None]:
    """Divide the threads between tasks and BLAS; also a decorator.

    Args:
        unknowns: of the systems that are solved; 0: none is large.
    """
    controller, threads = _blas()
    of_blas, workers = 1, threads
    if unknowns >= _LARGE and threads >= _SEVERAL:
        of_blas, workers = threads - 1, 1
    token = _WORKERS.set(workers)
    try:
        with controller.limit(limits=of_blas):
            yield
    finally:
        _WORKERS.reset(token)


def parallel_map(work: Callable[[T], S], items: Iterable[T]) -> Iterable[S]:
    """Apply a function to each of several items, in threads where the items are a list.

    Args:
        work: the function; it spends its time in NumPy.
        items: a list, or an iterator, of which one item at a time is in memory.

    Returns:
        The results, in the order of the items.
    """
    threads = 1 if backend().has_own_threads else _WORKERS.get()
    if threads == 1 or not isinstance(items, list) or len(items) == 1:
        return map(work, items)

    def task(item: T) -> S:
        _WORKERS.set(1)  # what it divides itself would wait for threads that wait for it
        return work(item)

    # Each in a copy of the context, which holds the backend.
    pool = _pool(threads)
    futures = [pool.submit(copy_context().run, task, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()  # what has not begun when one fails

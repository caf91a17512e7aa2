"""The linear algebra that costs time, on NumPy or PyTorch; everything around it is NumPy.

Matrices come in and go out as float64 arrays, stacked along a first axis where there are several.

Threads: BLAS hands a large system round among its own. Smaller ones lose more by that than they
gain, so there BLAS keeps to one thread, and as many chunks of columns are worked on side by side
(``each``). Either way there are as many threads as BLAS was set to use.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Protocol, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fskd_onnx.errors import FskdError

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
T = TypeVar("T")
S = TypeVar("S")


class Backend(Protocol):
    """What the sums and the solver are made of."""

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        """Return a b' in float64, whatever the types of (..., n, k) and (..., m, k)."""

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        """Factorize a symmetric matrix; return R -> R inverse(matrix), None if it cannot be."""

    def cholesky_all(self, matrices: Array) -> Callable[[Array], Array] | None:
        """Do the same for a stack of small ones, (..., n, m) being solved by (..., m, m)."""

    def pseudo_inverse(self, matrix: Array) -> Array:
        """Invert a symmetric matrix where it can be inverted."""


class _NumpyBackend:
    """NumPy and SciPy, on the CPU."""

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        left = a.astype(np.float64, copy=False)
        # The same array twice, not two that are equal: NumPy then computes one triangle only.
        right = left if b is a else b.astype(np.float64, copy=False)
        product: Array = left @ np.swapaxes(right, -1, -2)
        return product

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        try:
            factor = scipy.linalg.cho_factor(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        return lambda right: scipy.linalg.cho_solve(factor, right.T, check_finite=False).T

    def cholesky_all(self, matrices: Array) -> Callable[[Array], Array] | None:
        try:
            np.linalg.cholesky(matrices)
        except np.linalg.LinAlgError:
            return None

        # NumPy has no stacked solver for the factors; at this size that costs nothing.
        def solve(right: Array) -> Array:
            solution = np.linalg.solve(matrices, np.swapaxes(right, -1, -2))
            return np.swapaxes(solution, -1, -2)

        return solve

    def pseudo_inverse(self, matrix: Array) -> Array:
        inverse: Array = np.linalg.pinv(matrix, hermitian=True).astype(np.float64, copy=False)
        return inverse


class _TorchBackend:
    """PyTorch, on the GPU if it sees one."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise FskdError(
                "--solver torch needs PyTorch, which is not installed; run "
                "'pip install fskd-onnx[torch]' or choose --solver numpy"
            ) from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("solving with PyTorch on %s", self._device)

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        left = self._there(a).double()
        right = left if b is a else self._there(b).double()
        product: Array = (left @ right.mT).cpu().numpy()
        return product

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        return self.cholesky_all(matrix)

    def cholesky_all(self, matrices: Array) -> Callable[[Array], Array] | None:
        factor, failed = self._torch.linalg.cholesky_ex(self._there(matrices))
        if bool(failed.any()):
            return None

        def solve(right: Array) -> Array:
            columns = self._there(np.swapaxes(right, -1, -2))
            solution: Array = self._torch.cholesky_solve(columns, factor).mT.cpu().numpy()
            return solution

        return solve

    def pseudo_inverse(self, matrix: Array) -> Array:
        inverse: Array = self._torch.linalg.pinv(self._there(matrix), hermitian=True).cpu().numpy()
        return inverse

    def _there(self, array: NDArray[np.floating]) -> Any:
        return self._torch.as_tensor(np.ascontiguousarray(array), device=self._device)


_NUMPY = _NumpyBackend()
_BACKENDS: dict[str, Callable[[], Backend]] = {"numpy": lambda: _NUMPY, "torch": _TorchBackend}
_BACKEND: ContextVar[Backend] = ContextVar("backend", default=_NUMPY)


def backend() -> Backend:
    """Return what computes at present."""
    return _BACKEND.get()


@contextmanager
def solved_by(name: str) -> Iterator[None]:
    """Compute everything in a ``with`` block by a backend, "numpy" or "torch".

    Raises:
        FskdError: it is not installed.
    """
    token = _BACKEND.set(_BACKENDS[name]())
    try:
        yield
    finally:
        _BACKEND.reset(token)


_WORTH_THREADS = 1500
_SIDE_BY_SIDE: ContextVar[int] = ContextVar("side_by_side", default=1)


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
    if unknowns >= _WORTH_THREADS or backend() is not _NUMPY:  # PyTorch has threads of its own
        yield
        return
    controller, threads = _blas()
    token = _SIDE_BY_SIDE.set(threads)
    try:
        with controller.limit(limits=1):
            yield
    finally:
        _SIDE_BY_SIDE.reset(token)


def each(work: Callable[[T], S], items: Iterable[T]) -> Iterable[S]:
    """Do some work on each of several items, side by side where they are in memory anyway.

    Args:
        work: what to do; it spends its time in NumPy, and does not call this function.
        items: a list, or something that makes one after another, of which only one is held.

    Returns:
        The results, in the order of the items.
    """
    threads = _SIDE_BY_SIDE.get()
    if threads == 1 or not isinstance(items, list) or len(items) == 1:
        return map(work, items)
    # Each in a context of its own, which knows the backend.
    pool = _pool(threads)
    futures = [pool.submit(copy_context().run, work, item) for item in items]
    return [future.result() for future in futures]

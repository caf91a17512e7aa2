"""The linear algebra that costs time, on NumPy or PyTorch; everything around it is NumPy.

Matrices come in and go out as float64 arrays, stacked along a first axis where there are several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.errors import FskdError

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


class Backend(Protocol):
    """What the sums and the solver are made of."""

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        """Return a b' in float64, whatever the types of (..., n, k) and (..., m, k)."""

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        """Factorize a symmetric matrix; return R -> R inverse(matrix), None if it cannot be."""

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
        factor, failed = self._torch.linalg.cholesky_ex(self._there(matrix))
        if int(failed):
            return None

        def solve(right: Array) -> Array:
            columns = self._there(right.T)
            solution: Array = self._torch.cholesky_solve(columns, factor).T.cpu().numpy()
            return solution

        return solve

    def pseudo_inverse(self, matrix: Array) -> Array:
        inverse: Array = self._torch.linalg.pinv(self._there(matrix), hermitian=True).cpu().numpy()
        return inverse

    def _there(self, array: NDArray[np.floating]) -> Any:
        return self._torch.as_tensor(np.ascontiguousarray(array), device=self._device)


_BACKENDS: dict[str, Callable[[], Backend]] = {"numpy": _NumpyBackend, "torch": _TorchBackend}
_BACKEND: ContextVar[Backend] = ContextVar("backend", default=_NumpyBackend())


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

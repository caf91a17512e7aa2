"""The linear algebra that costs time, on NumPy or PyTorch; everything around it is NumPy.

Matrices come in and go out as float64 arrays, stacked along a first axis where there are several.

To add a backend: a class with the members of ``Backend``, its name in ``SolverName``, and a line in
``BACKENDS``::

    class _CupyBackend:
        has_own_threads = True

        def multiply(self, a, b):
            return cupy.asnumpy(cupy.asarray(a, float) @ cupy.asarray(b, float).swapaxes(-1, -2))

        ...

    BACKENDS = {..., SolverName.CUPY: _CupyBackend}
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.linalg.pytorch import load_torch
from fskd_onnx.options import SolverName

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


class Backend(Protocol):
    """What the sums and the solver are made of.

    Attributes:
        has_own_threads: whether it divides work among threads that are not those of BLAS.
    """

    has_own_threads: ClassVar[bool]

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        """Return a b' in float64, whatever the types of (..., n, k) and (..., m, k)."""

    def cholesky(self, matrix: Array, shift: float = 0.0) -> Callable[[Array], Array] | None:
        """Factorize a symmetric matrix with a shift on its diagonal.

        Returns:
            R -> R inverse(matrix + shift I); None where there is no factor.
        """

    def cholesky_all(self, matrices: Array) -> Callable[[Array], Array] | None:
        """Do the same for a stack of small ones, (..., n, m) being solved by (..., m, m)."""

    def pseudo_inverse(self, matrix: Array) -> Array:
        """Invert a symmetric matrix where it can be inverted."""


class _NumpyBackend:
    """NumPy and SciPy, on the CPU."""

    has_own_threads: ClassVar[bool] = False

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        left = a.astype(np.float64, copy=False)
        # The same array twice, not two that are equal: NumPy then computes one triangle only.
        right = left if b is a else b.astype(np.float64, copy=False)
        product: Array = left @ np.swapaxes(right, -1, -2)
        return product

    def cholesky(self, matrix: Array, shift: float = 0.0) -> Callable[[Array], Array] | None:
        shifted = matrix.copy()
        shifted.flat[:: len(shifted) + 1] += shift
        # Of a symmetric matrix the transpose is the same, in the order of LAPACK.
        factor, failed = scipy.linalg.lapack.dpotrf(
            shifted.T, lower=True, clean=False, overwrite_a=True
        )
        if failed:
            return None

        def solve(right: Array) -> Array:
            solution: Array = scipy.linalg.lapack.dpotrs(factor, right.T, lower=True)[0].T
            return solution

        return solve

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

    has_own_threads: ClassVar[bool] = True

    def __init__(self) -> None:
        self._torch: Any = load_torch("--solver torch needs", "choose --solver numpy")
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        logger.info("solving with PyTorch on %s", self._device)

    def multiply(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
        left = self._on_device(a).double()
        right = left if b is a else self._on_device(b).double()
        product: Array = (left @ right.mT).cpu().numpy()
        return product

    def cholesky(self, matrix: Array, shift: float = 0.0) -> Callable[[Array], Array] | None:
        return self.cholesky_all(matrix + shift * np.eye(len(matrix)) if shift else matrix)

    def cholesky_all(self, matrices: Array) -> Callable[[Array], Array] | None:
        factor, failed = self._torch.linalg.cholesky_ex(self._on_device(matrices))
        if bool(failed.any()):
            return None

        def solve(right: Array) -> Array:
            columns = self._on_device(np.swapaxes(right, -1, -2))
            solution: Array = self._torch.cholesky_solve(columns, factor).mT.cpu().numpy()
            return solution

        return solve

    def pseudo_inverse(self, matrix: Array) -> Array:
        inverse: Array = (
            self._torch.linalg.pinv(self._on_device(matrix), hermitian=True).cpu().numpy()
        )
        return inverse

    def _on_device(self, array: NDArray[np.floating]) -> Any:
        return self._torch.as_tensor(np.ascontiguousarray(array), device=self._device)


BACKENDS: Mapping[SolverName, Callable[[], Backend]] = {
    SolverName.NUMPY: _NumpyBackend,
    SolverName.TORCH: _TorchBackend,
}
"""The backend of each solver; making one raises ``FskdError`` where it is not installed."""

_BACKEND: ContextVar[Backend] = ContextVar("backend", default=_NumpyBackend())  # noqa: B039


def backend() -> Backend:
    """Return what computes at present."""
    return _BACKEND.get()


@contextmanager
def solved_by(name: str) -> Iterator[None]:
    """Compute everything in a ``with`` block by the backend of a ``SolverName``.

    Raises:
        FskdError: it is not installed.
    """
    token = _BACKEND.set(BACKENDS[SolverName(name)]())
    try:
        yield
    finally:
        _BACKEND.reset(token)

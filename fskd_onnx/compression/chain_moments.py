"""What the last node of a chain sees of the patches, for each rank, as moments.

The nodes in front of it are those of singular values: of the kernel where what each of them sees
varies as it does in the patches, positions taken alike. A node sees x, (x,), and k of it stand
behind; K is the kernel as (x, k), and M = L L' the mean of the k moments of x::

    L' K  ~  U S V'        node in front  (r, x)  U' L^-1        what stands behind it  U' L' K

They are nested: those of a rank are the first ones of a higher rank. So what the last node sees at
a rank is the first part of what it sees at a higher one. Of tucker that holds behind the kernel,
whose outputs are the leading eigenvectors of the response; in front of it each number of channels
has moments of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank
from fskd_onnx.passes.linear_chain import leading_eigenvectors, leading_vectors

# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-6}
# What a node in front gives varies by one where what it sees varies, and by less than this where
# that does not: its rows are large there, and what they give would be rounding.
_VARIES = 1e-3

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of some regressors and of the response.

    Attributes:
        gram: (m, m) of the regressors.
        cross: (n, m) of the response with them.
        energy: how much the response varies.
    """

    gram: Floats
    cross: Floats
    energy: float


def response_of(matrix: Floats, gram: Floats) -> Moments:
    """Return moments of patches, and of what a kernel makes of them."""
    cross = matrix @ gram
    energy = float(np.sum(cross * matrix, dtype=np.float64))
    if not np.isfinite(energy):
        raise ValueError("the moments are not finite")
    return Moments(gram, cross, energy)


See = Callable[[Moments], Moments]
Front = tuple[See, Mapping[Rank, int]]
"""What the last node sees, and how much of it at each rank."""


def fronts(form: Form, kernel: Floats, fitted: Moments, ranks: Sequence[Rank]) -> Iterator[Front]:
    """Yield what the last node sees, for some of the ranks each time.

    Args:
        form: one in which the last node is not solved for with the others at once.
        kernel: (n, c, taps along each axis).
        fitted: moments of the patches and of the response.
        ranks: of the form.
    """
    yield from _FRONTS[form](kernel, fitted, ranks)


def _spatial(kernel: Floats, fitted: Moments, ranks: Sequence[Rank]) -> Iterator[Front]:
    n, c, *taps = kernel.shape
    in_front = c * math.prod(taps[: LinearShape(n, c, tuple(taps)).first_axes])
    behind = c * math.prod(taps) // in_front
    alike = np.einsum("xbyb->xy", fitted.gram.reshape(in_front, behind, in_front, behind))
    by_inputs = kernel.reshape(n, in_front, behind).swapaxes(0, 1).reshape(in_front, -1)
    columns, _ = _in_front(by_inputs, alike, max(rank for (rank,) in ranks))

    def see(moments: Moments) -> Moments:
        return _seen_by(columns, moments, behind)

    yield see, {(rank,): rank * behind for (rank,) in ranks}


def _decouple(kernel: Floats, fitted: Moments, ranks: Sequence[Rank]) -> Iterator[Front]:
    n, c, *_ = kernel.shape
    most = max(terms for (terms,) in ranks)
    by_inputs = kernel.reshape(n, c, -1).transpose(1, 2, 0)
    taps, size = by_inputs.shape[1], c * most
    own = np.einsum("ckcl->ckl", fitted.gram.reshape(c, taps, c, taps))
    parts = [_in_front(rows, gram, most)[0] for rows, gram in zip(by_inputs, own, strict=True)]
    depthwise = np.stack(parts)  # (c, terms, taps)

    def see(moments: Moments) -> Moments:
        # The terms of all channels one after another: those of a rank are the first ones.
        half = (depthwise @ moments.gram.reshape(c, taps, -1)).swapaxes(0, 1)
        gram = half.reshape(size, c, taps).swapaxes(0, 1) @ depthwise.swapaxes(1, 2)
        cross = moments.cross.reshape(n, c, taps).swapaxes(0, 1) @ depthwise.swapaxes(1, 2)
        return Moments(
            gram.transpose(1, 2, 0).reshape(size, size),
            cross.transpose(1, 2, 0).reshape(n, size),
            moments.energy,
        )

    yield see, {(terms,): terms * c for (terms,) in ranks}


def _tucker(kernel: Floats, fitted: Moments, ranks: Sequence[Rank]) -> Iterator[Front]:
    n, c, *_ = kernel.shape
    most, outer = (max(rank[side] for rank in ranks) for side in range(2))
    taps = math.prod(kernel.shape[2:])
    alike = np.einsum("ckdk->cd", fitted.gram.reshape(c, taps, c, taps))
    by_inputs = kernel.reshape(n, c, taps).swapaxes(0, 1).reshape(c, -1)
    into, narrow_kernel = _in_front(by_inputs, alike, most)
    out = leading_eigenvectors(fitted.cross @ kernel.reshape(n, -1).T, outer)
    core = out.T @ narrow_kernel.reshape(most, n, taps).swapaxes(0, 1).reshape(n, -1)

    @functools.cache
    def behind_first(moments: Moments) -> Moments:
        return _seen_by(into, moments, taps)

    for inner in sorted({inner for inner, _ in ranks}):
        sizes = {rank: rank[1] for rank in ranks if rank[0] == inner}
        kept = core[: max(sizes.values()), : inner * taps]

        def see(moments: Moments, kept: Floats = kept) -> Moments:
            narrow, size = behind_first(moments), kept.shape[1]
            gram = kept @ narrow.gram[:size, :size] @ kept.T
            return Moments(gram, narrow.cross[:, :size] @ kept.T, moments.energy)

        yield see, sizes


def _in_front(by_inputs: Floats, gram: Floats, rank: int) -> tuple[Floats, Floats]:
    """Return the rows of a node in front, and what of a kernel stands behind them.

    Args:
        by_inputs: (x, k) the kernel, by what the node sees.
        gram: (x, x) moments of that.
        rank: r.

    Returns:
        (r, x) and (r, k) whose product is nearest to the kernel where x varies as ``gram`` says.
    """
    lower = cholesky(gram).astype(gram.dtype)
    whitened = lower.T @ by_inputs
    basis = leading_vectors(whitened, rank)
    rows = scipy.linalg.solve_triangular(lower, basis, lower=True, trans="T", check_finite=False)
    rows[:, np.einsum("xr,xr->r", rows, gram @ rows) < _VARIES] = 0.0
    return rows.T, basis.T @ whitened


_Fronts = Callable[[Floats, Moments, Sequence[Rank]], Iterator[Front]]

_FRONTS: Mapping[Form, _Fronts] = MappingProxyType(
    {Form.SPATIAL_SVD: _spatial, Form.TUCKER: _tucker, Form.DECOUPLE: _decouple}
)


def _seen_by(columns: Floats, moments: Moments, behind: int) -> Moments:
    """Return moments of what a node makes of each run of values.

    Args:
        columns: (r, x) of the node.
        moments: of x times ``behind`` values, those behind being the inner ones.
        behind: how many values stay apart.

    Returns:
        Those of r times ``behind`` values.
    """
    half = (columns @ moments.gram.reshape(columns.shape[1], -1)).reshape(-1, len(moments.gram))

    def contracted(values: Floats) -> Floats:
        rows = values.reshape(len(values), -1, behind).swapaxes(1, 2)
        product = rows.reshape(-1, columns.shape[1]) @ columns.T  # one large product
        return product.reshape(len(values), behind, -1).swapaxes(1, 2).reshape(len(values), -1)

    return Moments(contracted(half), contracted(moments.cross), moments.energy)


def cholesky(gram: Floats) -> Array:
    """Return the lower Cholesky factor in double precision, of a matrix made regular."""
    regular, diagonal = gram.astype(np.float64), np.arange(len(gram))
    own = regular[diagonal, diagonal]
    mean, jitter = float(own.mean()), _JITTER[gram.dtype]
    while True:
        regular[diagonal, diagonal] = own + (jitter * mean if mean > 0 else 1.0)
        try:
            lower: Array = scipy.linalg.cholesky(regular, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            jitter *= 10
        else:
            return lower

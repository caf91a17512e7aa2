"""The error that a refit leaves of a factorized node, for each rank, from moments alone.

Let P be the patches of the node, G their centred second moments and W its kernel, (n, p), so that
the response Y = W P varies by tr(W G W'). What is returned is ||Y - Y_r||^2 / ||Y - mean||^2 of the
best response Y_r of a chain::

    channel-svd   the tail of the eigenvalues of W G W' (Zhang et al. 2016, reduced-rank regression)
    the others    the nodes in front are those of the kernel's singular values, z = T P is what the
                  last node sees of the patches, and it is solved for anew: with H = T G T' and
                  C = W G T', the response has tr(C H^-1 C') of the variation

The nodes in front are nested: those of a rank are the first ones of a higher rank. With H = L L',
||L^-1 C'||^2 is a sum over what the last node sees, so one Cholesky factor gives all ranks. Of
tucker that holds behind the kernel; in front of it each number of channels has an H of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.decouple import Decouple
from fskd_onnx.passes.spatial_svd import SpatialSvd
from fskd_onnx.passes.tucker import Tucker

# Products of larger Gram matrices are formed in single precision, which is twice as fast: it takes
# less than a part in 10^4 from an error.
_LARGE = 1024
# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-6}

_Floats = NDArray[np.floating[Any]]
_Curve = Callable[[_Floats, _Floats, _Floats, Sequence[Rank]], list[float]]


def rank_curve(form: Form, linear: Linear, gram: Array, ranks: Sequence[Rank]) -> list[float]:
    """Return the error that is left at each rank, relative to the variation of the response.

    Args:
        form: of the chain.
        linear: a node that can be factorized in the form, see ``factorizable.why_not``.
        gram: (p, p) centred second moments of its patches, in the order of ``Linear.matrix``; how
            they are scaled makes no difference.
        ranks: each of the form, in any order.

    Returns:
        Errors from 0 to 1, of a rank none above that of a smaller one. Of a response that does not
        vary they are 0.
    """
    shape = LinearShape.of(linear)
    kind = np.float32 if len(gram) > _LARGE else np.float64
    matrix: _Floats = linear.matrix[0].astype(kind)
    moments: _Floats = gram.astype(kind, copy=False)
    gain = matrix @ moments
    energy = float(np.sum(gain * matrix, dtype=np.float64))
    if not energy > 0:
        return [0.0] * len(ranks)
    if form == Form.CHANNEL_SVD:
        return response_curve(gain @ matrix.T, ranks)
    kernel = matrix.reshape(shape.outputs, shape.inputs, *shape.kernel)
    explained = _EXPLAINED[form](kernel, moments, gain, ranks)
    return _monotone(ranks, (1.0 - part / energy for part in explained))


def response_curve(moments: _Floats, ranks: Sequence[Rank]) -> list[float]:
    """Return the errors of ``channel-svd`` from moments of the response.

    Args:
        moments: (n, n) W G W', the centred second moments of what the node computes.
        ranks: as of ``rank_curve``.
    """
    values = np.maximum(np.linalg.eigvalsh(np.asarray(moments, np.float64)), 0.0)
    tails = np.concatenate([[0.0], np.cumsum(values)])  # of the smallest ones
    if not tails[-1] > 0:
        return [0.0] * len(ranks)
    return _monotone(ranks, (float(tails[-1 - rank] / tails[-1]) for (rank,) in ranks))


def _spatial(
    kernel: _Floats, moments: _Floats, gain: _Floats, ranks: Sequence[Rank]
) -> list[float]:
    n, c, *taps = kernel.shape
    first = math.prod(taps[: LinearShape(n, c, tuple(taps)).first_axes])
    most, behind = max(rank for (rank,) in ranks), math.prod(taps) // first
    (columns,), _ = SpatialSvd.split(kernel, most)
    half = columns @ moments.reshape(c * first, -1)
    seen = _seen_by(columns, half.reshape(most * behind, c * first, behind))
    sums = _explained(seen, _seen_by(columns, gain.reshape(n, c * first, behind)))
    return [sums[rank * behind] for (rank,) in ranks]


def _decouple(
    kernel: _Floats, moments: _Floats, gain: _Floats, ranks: Sequence[Rank]
) -> list[float]:
    n, c, *_ = kernel.shape
    most = max(terms for (terms,) in ranks)
    depthwise, _ = Decouple.split(kernel, most)  # (c, terms, taps)
    taps, size = depthwise.shape[2], c * most
    # The terms of all channels one after another: those of a rank are the first ones.
    half = (depthwise @ moments.reshape(c, taps, -1)).swapaxes(0, 1).reshape(size, c, taps)
    seen = half.swapaxes(0, 1) @ depthwise.swapaxes(1, 2)  # (c, terms x c, terms)
    cross = gain.reshape(n, c, taps).swapaxes(0, 1) @ depthwise.swapaxes(1, 2)
    sums = _explained(
        seen.transpose(1, 2, 0).reshape(size, size), cross.transpose(1, 2, 0).reshape(n, size)
    )
    return [sums[terms * c] for (terms,) in ranks]


def _tucker(kernel: _Floats, moments: _Floats, gain: _Floats, ranks: Sequence[Rank]) -> list[float]:
    n, c, *_ = kernel.shape
    most, outer = (max(rank[side] for rank in ranks) for side in range(2))
    (into,), (core,), _ = Tucker.split(kernel, most, outer)
    taps = len(moments) // c
    # Moments of what the first node makes of the patches, and of the response with that.
    half = into @ moments.reshape(c, -1)
    narrow = _seen_by(into, half.reshape(most * taps, c, taps))
    narrow_gain = _seen_by(into, gain.reshape(n, c, taps))
    sums = {}
    for inner in {inner for inner, _ in ranks}:
        size, outer = inner * taps, max(behind for front, behind in ranks if front == inner)
        kept = core[:outer, :size]
        sums[inner] = _explained(
            kept @ narrow[:size, :size] @ kept.T, narrow_gain[:, :size] @ kept.T
        )
    return [sums[inner][behind] for inner, behind in ranks]


_EXPLAINED: Mapping[Form, _Curve] = MappingProxyType(
    {Form.SPATIAL_SVD: _spatial, Form.TUCKER: _tucker, Form.DECOUPLE: _decouple}
)


def _seen_by(columns: _Floats, moments: _Floats) -> _Floats:
    """Return moments with what a node sees along one axis, in one large product.

    Args:
        columns: (r, x) what the node makes of that axis.
        moments: (m, x, k).

    Returns:
        (m, r k).
    """
    m, x, k = moments.shape
    product = moments.swapaxes(1, 2).reshape(m * k, x) @ columns.T
    return product.reshape(m, k, -1).swapaxes(1, 2).reshape(m, -1)


def _explained(seen: _Floats, cross: _Floats) -> list[float]:
    """Return how much of the response regression on the first of some regressors gives.

    Args:
        seen: (m, m) moments of the regressors.
        cross: (n, m) moments of the response with them.

    Returns:
        On the first 0, 1, ... m of them.
    """
    gram = np.asarray(seen, np.float64)
    diagonal = np.arange(len(gram))
    mean, own = float(np.trace(gram)) / len(gram), gram[diagonal, diagonal]
    if not mean > 0:
        return [0.0] * (len(gram) + 1)
    jitter = _JITTER[seen.dtype]
    while True:
        gram[diagonal, diagonal] = own + jitter * mean
        try:
            lower = scipy.linalg.cholesky(gram, lower=True, check_finite=False)
            break
        except np.linalg.LinAlgError:
            jitter *= 10
    parts = scipy.linalg.solve_triangular(
        lower, np.asarray(cross, np.float64).T, lower=True, check_finite=False
    )
    sums = np.cumsum(np.einsum("mn,mn->m", parts, parts))
    return [0.0, *map(float, sums)]


def _monotone(ranks: Sequence[Rank], errors: Iterable[float]) -> list[float]:
    """Return errors from 0 to 1, of no rank above that of a smaller one.

    A chain can be that of any smaller rank; rounding, and nodes in front that are those of the
    kernel and not of the response, may say otherwise.
    """
    found = [min(max(error, 0.0), 1.0) for error in errors]
    return [
        min(
            error
            for error, other in zip(found, ranks, strict=True)
            if all(o <= r for o, r in zip(other, rank, strict=True))
        )
        for rank in ranks
    ]

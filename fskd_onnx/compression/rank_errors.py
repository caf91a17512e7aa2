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

Where columns are few beside what the last node sees, it fits them better than others, several times
in deep layers of small images. So the error can be that on the moments of other samples: what is
solved for on some is judged on others. That of half of the samples, then, is rather too large.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

# Products of larger Gram matrices are formed in single precision, which is twice as fast and
# changes an error by about 10^-6, and by 10^-3 where there are fewer columns than regressors.
_LARGE = 1024
# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-6}

_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Second moments of some regressors and of the response.

    Attributes:
        gram: (m, m) of the regressors.
        cross: (n, m) of the response with them.
        energy: how much the response varies.
    """

    gram: _Floats
    cross: _Floats
    energy: float


_See = Callable[[_Moments], _Moments]
_Front = tuple[_See, Mapping[Rank, int]]
"""What the last node sees, and how much of it at each rank."""


def rank_curve(
    form: Form,
    linear: Linear,
    gram: Array,
    ranks: Sequence[Rank],
    *,
    ridge: float = 0.0,
    held_out: Array | None = None,
) -> list[float]:
    """Return the error that is left at each rank, relative to the variation of the response.

    Args:
        form: of the chain.
        linear: a node that can be factorized in the form, see ``factorizable.why_not``.
        gram: (p, p) centred second moments of its patches, in the order of ``Linear.matrix``; how
            they are scaled makes no difference.
        ranks: each of the form, in any order.
        ridge: what is added to the diagonal of ``gram``, relative to its mean, as a fit does that
            pulls towards the kernel.
        held_out: the same moments of other samples, to judge on; None: those that are solved with,
            the ridge included.

    Returns:
        Errors from 0 to 1, of a rank none above that of a smaller one. Of a response that does not
        vary they are 0.

    Raises:
        ValueError: the moments are not finite.
    """
    shape = LinearShape.of(linear)
    kind = np.float32 if len(gram) > _LARGE else np.float64
    matrix: _Floats = linear.matrix[0].astype(kind)
    fitted = _response(matrix, _scaled(gram, kind, ridge))
    judged = None if held_out is None else _response(matrix, _scaled(held_out, kind))
    if form == Form.CHANNEL_SVD:
        return response_curve(
            fitted.cross @ matrix.T, ranks, None if judged is None else judged.cross @ matrix.T
        )
    if not (fitted if judged is None else judged).energy > 0:
        return [0.0] * len(ranks)
    kernel = matrix.reshape(shape.outputs, shape.inputs, *shape.kernel)
    found: dict[Rank, float] = {}
    for see, sizes in _FRONTS[form](kernel, ranks):
        found |= _errors(see(fitted), None if judged is None else see(judged), sizes)
    return _monotone(ranks, (found[rank] for rank in ranks))


def response_curve(
    moments: _Floats, ranks: Sequence[Rank], held_out: _Floats | None = None
) -> list[float]:
    """Return the errors of ``channel-svd`` from moments of the response.

    Args:
        moments: (n, n) W G W', the centred second moments of what the node computes.
        ranks: as of ``rank_curve``.
        held_out: the same of other samples, to judge on.
    """
    _, vectors = np.linalg.eigh(np.asarray(moments, np.float64))
    judged = np.asarray(moments if held_out is None else held_out, np.float64)
    # What each direction has of the variation, those that go first in front.
    parts = np.maximum(np.einsum("nm,nk,km->m", vectors, judged, vectors, optimize=True), 0.0)
    tails = np.concatenate([[0.0], np.cumsum(parts)])
    if not tails[-1] > 0:
        return [0.0] * len(ranks)
    return _monotone(ranks, (float(tails[-1 - rank] / tails[-1]) for (rank,) in ranks))


def _response(matrix: _Floats, gram: _Floats) -> _Moments:
    """Return moments of patches, and of what a kernel makes of them."""
    cross = matrix @ gram
    energy = float(np.sum(cross * matrix, dtype=np.float64))
    if not np.isfinite(energy):
        raise ValueError("the moments are not finite")
    return _Moments(gram, cross, energy)


def _scaled(gram: Array, kind: type[np.floating[Any]], ridge: float = 0.0) -> _Floats:
    """Return a Gram matrix of a mean diagonal of one, and a ridge on it; zeros stay."""
    mean = float(np.trace(gram)) / len(gram)
    scaled: _Floats = (gram if mean == 0 else gram / mean).astype(kind)
    scaled.flat[:: len(gram) + 1] += ridge
    return scaled


def _spatial(kernel: _Floats, ranks: Sequence[Rank]) -> Iterator[_Front]:
    n, c, *taps = kernel.shape
    in_front = c * math.prod(taps[: LinearShape(n, c, tuple(taps)).first_axes])
    behind = c * math.prod(taps) // in_front
    (columns,), _ = SpatialSvd.split(kernel, max(rank for (rank,) in ranks))

    def see(moments: _Moments) -> _Moments:
        return _seen_by(columns, moments, behind)

    yield see, {(rank,): rank * behind for (rank,) in ranks}


def _decouple(kernel: _Floats, ranks: Sequence[Rank]) -> Iterator[_Front]:
    n, c, *_ = kernel.shape
    depthwise, _ = Decouple.split(kernel, max(terms for (terms,) in ranks))  # (c, terms, taps)
    size, taps = depthwise.shape[0] * depthwise.shape[1], depthwise.shape[2]

    def see(moments: _Moments) -> _Moments:
        # The terms of all channels one after another: those of a rank are the first ones.
        half = (depthwise @ moments.gram.reshape(c, taps, -1)).swapaxes(0, 1)
        gram = half.reshape(size, c, taps).swapaxes(0, 1) @ depthwise.swapaxes(1, 2)
        cross = moments.cross.reshape(n, c, taps).swapaxes(0, 1) @ depthwise.swapaxes(1, 2)
        return _Moments(
            gram.transpose(1, 2, 0).reshape(size, size),
            cross.transpose(1, 2, 0).reshape(n, size),
            moments.energy,
        )

    yield see, {(terms,): terms * c for (terms,) in ranks}


def _tucker(kernel: _Floats, ranks: Sequence[Rank]) -> Iterator[_Front]:
    most, outer = (max(rank[side] for rank in ranks) for side in range(2))
    (into,), (core,), _ = Tucker.split(kernel, most, outer)
    taps = core.shape[1] // most

    @functools.cache
    def behind_first(moments: _Moments) -> _Moments:
        return _seen_by(into, moments, taps)

    for inner in sorted({inner for inner, _ in ranks}):
        sizes = {rank: rank[1] for rank in ranks if rank[0] == inner}
        kept = core[: max(sizes.values()), : inner * taps]

        def see(moments: _Moments, kept: _Floats = kept) -> _Moments:
            narrow, size = behind_first(moments), kept.shape[1]
            gram = kept @ narrow.gram[:size, :size] @ kept.T
            return _Moments(gram, narrow.cross[:, :size] @ kept.T, moments.energy)

        yield see, sizes


_FRONTS: Mapping[Form, Callable[[_Floats, Sequence[Rank]], Iterator[_Front]]] = MappingProxyType(
    {Form.SPATIAL_SVD: _spatial, Form.TUCKER: _tucker, Form.DECOUPLE: _decouple}
)


def _seen_by(columns: _Floats, moments: _Moments, behind: int) -> _Moments:
    """Return moments of what a node makes of each run of values.

    Args:
        columns: (r, x) of the node.
        moments: of x times ``behind`` values, those behind being the inner ones.
        behind: how many values stay apart.

    Returns:
        Those of r times ``behind`` values.
    """
    half = (columns @ moments.gram.reshape(columns.shape[1], -1)).reshape(-1, len(moments.gram))

    def contracted(values: _Floats) -> _Floats:
        rows = values.reshape(len(values), -1, behind).swapaxes(1, 2)
        product = rows.reshape(-1, columns.shape[1]) @ columns.T  # one large product
        return product.reshape(len(values), behind, -1).swapaxes(1, 2).reshape(len(values), -1)

    return _Moments(contracted(half), contracted(moments.cross), moments.energy)


def _errors(
    fitted: _Moments, judged: _Moments | None, sizes: Mapping[Rank, int]
) -> dict[Rank, float]:
    """Return the relative error of regression on the first of some regressors.

    Args:
        fitted: moments to solve with.
        judged: moments to judge on; None: the same.
        sizes: how many regressors there are, of each rank.
    """
    lower = _cholesky(fitted.gram)
    parts = scipy.linalg.solve_triangular(
        lower, fitted.cross.T.astype(np.float64), lower=True, check_finite=False
    )
    if judged is None:
        sums = np.concatenate([[0.0], np.cumsum(np.einsum("mn,mn->m", parts, parts))])
        return {rank: 1.0 - float(sums[size]) / fitted.energy for rank, size in sizes.items()}
    errors = {}
    for rank, size in sizes.items():
        solution = scipy.linalg.solve_triangular(
            lower[:size, :size], parts[:size], lower=True, trans="T", check_finite=False
        ).astype(judged.gram.dtype)
        image = judged.gram[:size, :size] @ solution - 2.0 * judged.cross[:, :size].T
        errors[rank] = 1.0 + float(np.sum(image * solution, dtype=np.float64)) / judged.energy
    return errors


def _cholesky(gram: _Floats) -> Array:
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

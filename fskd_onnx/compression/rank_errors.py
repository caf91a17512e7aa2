"""The error that a refit leaves of a factorized node, for each rank, from moments alone.

Let P be the patches of the node, G their centred second moments and W its kernel, (n, p), so that
the response Y = W P varies by tr(W G W'). What is returned is ||Y - Y_r||^2 / ||Y - mean||^2 of the
best response Y_r of a chain::

    channel-svd   the tail of the eigenvalues of W G W' (Zhang et al. 2016, reduced-rank regression)
    the others    the nodes in front are those of singular values, z = T P is what the last node
                  sees of the patches, and it is solved for anew: with H = T G T' and C = W G T',
                  the response has tr(C H^-1 C') of the variation

Which nodes stand in front is said in ``chain_moments``; a fit sweeps over all nodes, and so leaves
a little less. With H = L L', ||L^-1 C'||^2 is a sum over what the last node sees, so one Cholesky
factor gives all ranks whose nodes in front are nested.

Where columns are few beside what the last node sees, it fits them better than others, several times
in deep layers of small images. So the error can be that on the moments of other samples: what is
solved for on some is judged on others. That of half of the samples, then, is rather too large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.linalg

from fskd_onnx.compression.chain_moments import Floats, Moments, cholesky, fronts, response_of
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.linear_chain import leading_eigenvectors, leading_vectors

# Products of larger Gram matrices are formed in single precision, which is twice as fast and
# changes an error by about 10^-6, and by 10^-3 where there are fewer columns than regressors.
_LARGE = 1024


class RankErrors:
    """The errors of one node, in all forms."""

    def __init__(
        self, linear: Linear, gram: Array, *, ridge: float = 0.0, held_out: Array | None = None
    ) -> None:
        """Take the moments of a node.

        Args:
            linear: the node.
            gram: (p, p) centred second moments of its patches, in the order of ``Linear.matrix``;
                how they are scaled makes no difference.
            ridge: what is added to the diagonal of ``gram``, relative to its mean, as a fit does
                that pulls towards the kernel.
            held_out: the same moments of other samples, to judge on; None: those that are solved
                with, the ridge included.

        Raises:
            ValueError: the moments are not finite.
        """
        kind = np.float32 if len(gram) > _LARGE else np.float64
        self._linear = linear
        self._matrix: Floats = linear.matrix[0].astype(kind)
        self._fitted = response_of(self._matrix, _scaled(gram, kind, ridge))
        self._judged = self._fitted
        if held_out is not None:
            self._judged = response_of(self._matrix, _scaled(held_out, kind))

    def curve(self, form: Form, ranks: Sequence[Rank]) -> list[float]:
        """Return the error that is left at each rank, relative to the variation of the response.

        Args:
            form: of the chain; one that the node can be factorized in, see
                ``factorizable.why_not``.
            ranks: each of the form, in any order.

        Returns:
            Errors from 0 to 1, of a rank none above that of a smaller one. Of a response that does
            not vary they are 0.
        """
        if not ranks:
            return []
        fitted, judged = self._fitted, self._judged
        if not judged.energy > 0:
            return [0.0] * len(ranks)
        if form == Form.CHANNEL_SVD:
            return _monotone(ranks, self._tails([rank for (rank,) in ranks]))
        shape = LinearShape.of(self._linear)
        kernel = self._matrix.reshape(shape.outputs, shape.inputs, *shape.kernel)
        found: dict[Rank, float] = {}
        for see, sizes in fronts(form, kernel, fitted, ranks):
            found |= _errors(see(fitted), None if judged is fitted else see(judged), sizes)
        return _monotone(ranks, (found[rank] for rank in ranks))

    def _tails(self, ranks: Sequence[int]) -> list[float]:
        """Return what the response varies by beside its leading directions, by their number."""
        matrix, judged = self._matrix, self._judged
        if len(matrix) <= matrix.shape[1]:
            response = (self._fitted.cross @ matrix.T).astype(np.float64)
            directions = leading_eigenvectors(response, max(ranks))
        else:
            whitened = matrix @ cholesky(self._fitted.gram)
            directions = leading_vectors(whitened, max(ranks))
        seen = (judged.cross.T @ directions) * (matrix.T @ directions)  # (p, rank)
        left = np.concatenate([[0.0], np.cumsum(seen.sum(axis=0, dtype=np.float64))])
        return [1.0 - float(left[rank]) / judged.energy for rank in ranks]


def _scaled(gram: Array, kind: type[np.float32 | np.float64], ridge: float = 0.0) -> Floats:
    """Return a Gram matrix of a mean diagonal of one, and a ridge on it; zeros stay."""
    mean = float(np.trace(gram)) / len(gram)
    scaled: Floats = np.empty(gram.shape, kind)
    np.divide(gram, mean or 1.0, out=scaled, casting="same_kind")  # without a copy of this size
    scaled.flat[:: len(gram) + 1] += ridge
    return scaled


def _errors(
    fitted: Moments, judged: Moments | None, sizes: Mapping[Rank, int]
) -> dict[Rank, float]:
    """Return the relative error of regression on the first of some regressors.

    Args:
        fitted: moments to solve with.
        judged: moments to judge on; None: the same.
        sizes: how many regressors there are, of each rank.
    """
    lower = cholesky(fitted.gram)
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


def _monotone(ranks: Sequence[Rank], errors: Iterable[float]) -> list[float]:
    """Return errors from 0 to 1, of no rank above that of a smaller one.

    A chain can be that of any smaller rank; rounding, and nodes in front that are not the best ones
    of their rank, may say otherwise.
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

"""Convolutions as k x 1, then 1 x k, by singular values of the kernel.

The kernel (n, c, a, b), where a runs over the taps of the first axes and b over those of the others
(see ``analysis.factorizable``), is a matrix from (c, a) to (n, b). Its best approximation of rank r
(Eckart and Young, 1936) is a sum of r products::

    K[n, c, a, b]  ~  sum over r of  U[(c, a), r] s[r] V[r, (n, b)]

    first node   (r, c, a)  sqrt(s) U        last node   (n, r, b)  sqrt(s) V

Per output position it takes r (c a + n b) products in the place of n c a b; the first node runs at
every position of the input along the other axes. Of three axes the first node has one, the last one
two. Source: M. Jaderberg, A. Vedaldi, A. Zisserman, "Speeding up Convolutional Neural Networks with
Low Rank Expansions", BMVC 2014, scheme 2; in closed form C. Tai et al., "Convolutional neural
networks with low-rank regularization", ICLR 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fskd_onnx.passes.analysis.factorizable import Form, LinearShape
from fskd_onnx.passes.linear_chain import Array, FactorizeByRank, low_rank


@dataclass(frozen=True)
class SpatialSvd(FactorizeByRank):
    """Put two convolutions, one along the first axes and one along the others, for one."""

    form: ClassVar = Form.SPATIAL_SVD

    @staticmethod
    def split(kernel: Array, *rank: int) -> tuple[Array, ...]:
        """See ``Factorize``."""
        (r,), (n, c, *taps) = rank, kernel.shape
        first = math.prod(taps[: LinearShape(n, c, tuple(taps)).first_axes])
        by_taps = kernel.reshape(n, c, first, -1)
        left, right = low_rank(by_taps.transpose(1, 2, 0, 3).reshape(c * first, -1), r)
        last = right.reshape(r, n, -1).transpose(1, 0, 2)
        return left.T[None], last.reshape(1, n, -1)

"""Convolutions as k x k to few channels, then 1 x 1, and matrices as two, by singular values.

The kernel is a matrix (n, p), p = c x taps. Its best approximation of rank r (Eckart and Young,
1936) is the product of the two nodes::

    W  ~  U diag(s) V        first node  (r, p)  sqrt(s) V        last node  (n, r)  U sqrt(s)

Per output position it takes r (p + n) products in the place of n p. Sources: E. Denton et al.,
"Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", NeurIPS 2014;
X. Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection",
PAMI 2016, which takes the singular values of the responses instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fskd_onnx.passes.analysis.factorizable import Form
from fskd_onnx.passes.linear_chain import Array, FactorizeByRank, low_rank


@dataclass(frozen=True)
class ChannelSvd(FactorizeByRank):
    """Put a node of few channels and a 1 x 1 node, or two matrices, for one node."""

    form: ClassVar = Form.CHANNEL_SVD

    @staticmethod
    def split(kernel: Array, *rank: int) -> tuple[Array, ...]:
        """See ``Factorize``."""
        left, right = low_rank(kernel.reshape(len(kernel), -1), *rank)
        return right[None], left[None]

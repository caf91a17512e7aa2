"""Convolutions as 1 x 1 to few channels, k x k among few, 1 x 1 from few: Tucker-2.

The kernel (n, c, taps) is projected on the leading singular vectors of its two unfoldings, I of
(c, n taps) and O of (n, c taps), and what is between them is the core::

    core[o, i, t] = sum over n, c of  O[n, o] K[n, c, t] I[c, i]

    first node  (i, c)  I'        second node  (o, i, taps)  core        last node  (n, o)  O

It takes i c, o i taps and n o products in the place of n c taps; the first node runs at every
position of the input. Sources: L. Tucker, "Some mathematical notes on three-mode factor analysis",
Psychometrika 1966; L. De Lathauwer et al., "A multilinear singular value decomposition", SIAM 2000;
Y.-D. Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", ICLR 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from fskd_onnx.passes.analysis.factorizable import Form, Rank
from fskd_onnx.passes.linear_chain import Array, Factorize, leading_vectors


@dataclass(frozen=True)
class Tucker(Factorize):
    """Put a convolution between two of 1 x 1 for one.

    Attributes:
        ranks: channels in front of the middle one and behind it, by the node's name.
    """

    ranks: Mapping[str, tuple[int, int]]
    form: ClassVar = Form.TUCKER

    @classmethod
    def of(cls, ranks: Mapping[str, Rank]) -> Self:
        """See ``Factorize``."""
        return cls({name: (inner, outer) for name, (inner, outer) in ranks.items()})

    @property
    def chosen(self) -> Mapping[str, Rank]:
        """See ``Factorize``."""
        return self.ranks

    @staticmethod
    def split(kernel: Array, *rank: int) -> tuple[Array, ...]:
        """See ``Factorize``."""
        (inner, outer), (n, c) = rank, kernel.shape[:2]
        into = leading_vectors(kernel.swapaxes(0, 1).reshape(c, -1), inner)
        out = leading_vectors(kernel.reshape(n, -1), outer)
        narrow = (out.T @ kernel.reshape(n, -1)).reshape(outer, c, -1)
        core = np.matmul(into.T, narrow)
        return into.T[None], core.reshape(1, outer, -1), out[None]

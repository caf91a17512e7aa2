"""Convolutions as k x k depthwise, then 1 x 1, by singular values of each input channel's kernels.

What the outputs see of input channel c is a matrix (n, taps). Its best approximation of t terms
(Eckart and Young, 1936) is that of t depthwise kernels, which a pointwise node mixes::

    K[n, c, :]  ~  sum over t of  U_c[n, t] s_c[t] V_c[t, :]

    first node   (c t, 1, taps), c groups   sqrt(s) V        last node   (n, c t)   U sqrt(s)

Per output position it takes c t (taps + n) products in the place of n c taps. All terms are one
chain, the depthwise node having t outputs per input channel, and are fitted as one; ``SplitTerms``
makes branches of them. Source: J. Guo et al., "Network Decoupling: From Regular to Depthwise
Separable Convolutions", BMVC 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from fskd_onnx.passes.analysis.factorizable import Form, Rank
from fskd_onnx.passes.linear_chain import Array, Factorize


@dataclass(frozen=True)
class Decouple(Factorize):
    """Put a depthwise and a pointwise convolution for one.

    Attributes:
        terms: depthwise kernels per input channel, by the node's name.
    """

    terms: Mapping[str, int]
    form: ClassVar = Form.DECOUPLE

    @classmethod
    def of(cls, ranks: Mapping[str, Rank]) -> Self:
        """See ``Factorize``."""
        return cls({name: rank for name, (rank,) in ranks.items()})

    @property
    def chosen(self) -> Mapping[str, Rank]:
        """See ``Factorize``."""
        return {name: (terms,) for name, terms in self.terms.items()}

    @staticmethod
    def split(kernel: Array, *rank: int) -> tuple[Array, ...]:
        """See ``Factorize``."""
        (terms,), (n, c) = rank, kernel.shape[:2]
        of_inputs = kernel.swapaxes(0, 1).reshape(c, n, -1)
        outputs, values, taps = np.linalg.svd(of_inputs, full_matrices=False)
        root = np.sqrt(values[:, :terms])
        depthwise = root[..., np.newaxis] * taps[:, :terms]
        pointwise = outputs[..., :terms] * root[:, np.newaxis]
        return depthwise, pointwise.transpose(1, 0, 2).reshape(1, n, c * terms)

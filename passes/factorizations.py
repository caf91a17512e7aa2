"""The list of passes that factorize linear nodes, by form.

To add a form: a member of ``Form``, its nodes and its full rank in ``analysis/factorizable.py``, a
subclass of ``Factorize`` in a file of its own, and its line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fskd_onnx.passes.analysis.factorizable import Form
from fskd_onnx.passes.channel_svd import ChannelSvd
from fskd_onnx.passes.decouple import Decouple
from fskd_onnx.passes.linear_chain import Factorize
from fskd_onnx.passes.spatial_svd import SpatialSvd
from fskd_onnx.passes.tucker import Tucker

FACTORIZATIONS: Mapping[Form, type[Factorize]] = MappingProxyType(
    {
        Form.SPATIAL_SVD: SpatialSvd,
        Form.CHANNEL_SVD: ChannelSvd,
        Form.TUCKER: Tucker,
        Form.DECOUPLE: Decouple,
    }
)
"""The pass of each form; ``FACTORIZATIONS[form].of(ranks)`` makes one."""

"""Graph passes, usable on their own: ``ModelProto`` in, ``ModelProto`` out."""

from fskd_onnx.passes.base import Pass, PassError, PassResult, export
from fskd_onnx.passes.canonicalize import Canonicalize
from fskd_onnx.passes.capture import GatherColumns
from fskd_onnx.passes.fold_affine import FoldAffine
from fskd_onnx.passes.fold_constants import FoldConstants
from fskd_onnx.passes.fuse_adapter import FuseAdapter
from fskd_onnx.passes.insert_adapter import Adapter, InsertAdapter
from fskd_onnx.passes.replace_weights import ReplaceWeights, Weights
from fskd_onnx.passes.segment import Segment, extract, plan_segments

__all__ = [
    "Adapter",
    "Canonicalize",
    "FoldAffine",
    "FoldConstants",
    "FuseAdapter",
    "GatherColumns",
    "InsertAdapter",
    "Pass",
    "PassError",
    "PassResult",
    "ReplaceWeights",
    "Segment",
    "Weights",
    "export",
    "extract",
    "plan_segments",
]

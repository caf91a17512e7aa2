"""Graph passes, usable on their own: ``ModelProto`` in, ``ModelProto`` out."""

from fskd_onnx.passes.base import Pass, PassError, PassResult
from fskd_onnx.passes.canonicalize import Canonicalize
from fskd_onnx.passes.fuse_adapter import FuseAdapter
from fskd_onnx.passes.insert_adapter import Adapter, InsertAdapter

__all__ = [
    "Adapter",
    "Canonicalize",
    "FuseAdapter",
    "InsertAdapter",
    "Pass",
    "PassError",
    "PassResult",
]

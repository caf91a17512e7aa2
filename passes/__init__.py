"""Graph passes, usable on their own: ``ModelProto`` in, ``ModelProto`` out."""

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.segments import Segment, plan_segments
from fskd_onnx.passes.base import Pass, PassResult, export
from fskd_onnx.passes.canonicalize import Canonicalize
from fskd_onnx.passes.channel_svd import ChannelSvd
from fskd_onnx.passes.compose_chains import ComposeChains
from fskd_onnx.passes.decouple import Decouple
from fskd_onnx.passes.drop_blocks import DropBlocks
from fskd_onnx.passes.errors import PassError
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.passes.fold_affine import FoldAffine
from fskd_onnx.passes.fold_behind_split import FoldBehindSplit
from fskd_onnx.passes.fold_constants import FoldConstants
from fskd_onnx.passes.fold_extents import FoldExtents
from fskd_onnx.passes.fuse_adapter import FuseAdapter
from fskd_onnx.passes.gather_columns import GatherColumns
from fskd_onnx.passes.insert_adapter import InsertAdapter
from fskd_onnx.passes.join_layers import JoinLayers, SplitLayers
from fskd_onnx.passes.merge_branches import MergeBranches
from fskd_onnx.passes.number_parts import NumberParts
from fskd_onnx.passes.prune_channels import PruneChannels
from fskd_onnx.passes.replace_weights import ReplaceWeights
from fskd_onnx.passes.rewrite_products import RewriteProducts
from fskd_onnx.passes.spatial_svd import SpatialSvd
from fskd_onnx.passes.split_terms import SplitTerms
from fskd_onnx.passes.tucker import Tucker

__all__ = [
    "AffineMap",
    "Canonicalize",
    "ChannelSvd",
    "ComposeChains",
    "Decouple",
    "DropBlocks",
    "FoldAffine",
    "FoldBehindSplit",
    "FoldConstants",
    "FoldExtents",
    "FuseAdapter",
    "GatherColumns",
    "InsertAdapter",
    "JoinLayers",
    "MergeBranches",
    "NumberParts",
    "Pass",
    "PassError",
    "PassResult",
    "PruneChannels",
    "ReplaceWeights",
    "RewriteProducts",
    "Segment",
    "SpatialSvd",
    "SplitLayers",
    "SplitTerms",
    "Tucker",
    "export",
    "extract",
    "plan_segments",
]

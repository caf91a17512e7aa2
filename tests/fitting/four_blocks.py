"""A network of four blocks, and their plans, for tests of the teacher's pass."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.fitting.block_plan import BlockPlan, plan_blocks
from fskd_onnx.matching.channels import match_models
from tests.helpers import build

# x ─▶ 1 ─▶ r ─▶ 2 ─▶ + ─▶ pool ─▶ 3 ─▶ + (a product of one position, and a map) ─▶ 4
#           └─────────▶ ┘ └─────────────▶ ┘
TEXT = """net (float[N,2,6,6] {0}) => (float[N,36,5] y)
    <float[4,2,3,3] w1, float[4,4,3,3] w2, float[4] b2, float[4,4,1,1] w3, float[4,5] w4> {{
    [n1] c1 = Conv<pads=[1,1,1,1]>({0}, w1)
    r1 = Relu(c1)
    [n2] c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    s2 = Add(c2, r1)
    r2 = Relu(s2)
    pool = GlobalAveragePool(r2)
    [n3] c3 = Conv(pool, w3)
    s3 = Add(c3, r2)
    flat = Reshape(s3, shape)
    transposed = Transpose<perm=[0,2,1]>(flat)
    [n4] y = MatMul(transposed, w4)
}}"""
OUTPUTS = {"c1": False, "c2": False, "s2": False, "c3": False, "s3": False, "y": True}


def network(name: str, noise: float = 0.0) -> onnx.ModelProto:
    text = TEXT.format(name).replace("> {", ", int64[3] shape> {", 1)
    model = build(text, {"shape": np.array([0, 4, -1])})
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            value = onnx.numpy_helper.to_array(tensor)
            changed = value + noise * rng.standard_normal(value.shape).astype(value.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    return model


def plans(teacher: onnx.ModelProto, needs_patches: bool = True, seed: int = 3) -> list[BlockPlan]:
    graphs = gs.import_onnx(teacher), gs.import_onnx(network("image", noise=0.05))
    matching = match_models(*graphs)
    assert [pair.reason for pair in matching.pairs] == [""] * 4
    return plan_blocks(matching, graphs[1], graphs[0], needs_patches, seed)

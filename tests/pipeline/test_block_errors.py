"""Errors of block outputs are those that the two networks have there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions, fit
from fskd_onnx.compare_results import BlockError
from fskd_onnx.pipeline.compare import compare
from fskd_onnx.reporting.json_format import to_json
from fskd_onnx.reporting.record import record_of
from tests.helpers import Array, build, initializers, run

CPU = RunOptions(("cpu",))
RNG = np.random.default_rng(0)

# x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ Relu ─▶ GlobalAveragePool ─▶ Gemm
TEXT = """g (float[{batch},2,6,6] x) => (float[{batch},5] y)
<float[{w},2,3,3] w1, float[{w}] b1, float[6,{w},3,3] w2, float[6] b2, float[5,6] w3> {{
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv (r1, w2, b2)
    r2 = Relu (c2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3)
}}"""
KEPT = [6, 1, 4]


def networks(batch: str = "N") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    teacher = build(TEXT.format(batch="N", w=8))
    whole = initializers(teacher)
    student = build(
        TEXT.format(batch=batch, w=3),
        whole | {"w1": whole["w1"][KEPT], "b1": whole["b1"][KEPT], "w2": whole["w2"][:, KEPT]},
    )
    for model in (teacher, student):
        for node in model.graph.node:
            node.name = f"node_{node.output[0]}"
    return teacher, student


def tensors(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """Give all that a network computes."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    whole.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for node in model.graph.node
        for name in node.output
    )
    return run(whole, {"x": x})


def relative(teacher: Array, student: Array) -> float:
    """The error of (N, channels, ...), the mean being that of each channel."""
    t, s = teacher.astype(np.float64), student.astype(np.float64)
    over = tuple(axis for axis in range(t.ndim) if axis != 1)
    spread = np.sum((t - t.mean(axis=over, keepdims=True)) ** 2)
    return float(np.sum((s - t) ** 2) / spread)


@pytest.mark.parametrize("batch", ["N", "4"])
def test_errors_are_those_of_the_tensors(batch: str) -> None:
    teacher, student = networks(batch)
    x = RNG.standard_normal((8, 2, 6, 6)).astype(np.float32)
    found = {b.student: b for b in compare(teacher, student, x, CPU, blocks=True).blocks}
    parts = [x[:4], x[4:]] if batch == "4" else [x]
    own_parts = [tensors(student, part) for part in parts]
    own = {name: np.concatenate([part[name] for part in own_parts]) for name in own_parts[0]}
    theirs = tensors(teacher, x)
    assert list(found) == ["node_c1", "node_c2", "node_y"]
    assert found["node_c1"].error == pytest.approx(0, abs=1e-12)
    assert found["node_c1"].channels == tuple(KEPT)
    for name in ("c2", "y"):
        block = found[f"node_{name}"]
        assert (block.teacher, block.reason) == (name, "")
        assert block.error == pytest.approx(relative(theirs[name], own[name]), rel=1e-4)


def test_a_block_without_a_counterpart_has_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"pairs": [{"student": "node_c2", "teacher": None}]}))
    x = RNG.standard_normal((8, 2, 6, 6)).astype(np.float32)
    found = compare(*networks(), x, CPU, blocks=True, block_map=str(path))
    block = next(block for block in found.blocks if block.student == "node_c2")
    assert block == BlockError("node_c2", None, "Conv", (), None, None, "the map says so")
    assert compare(*networks(), x, CPU).blocks == ()


def test_the_report_of_a_fit_says_what_its_channels_are(tmp_path: Path) -> None:
    teacher, student = networks()
    x = RNG.standard_normal((60, 2, 6, 6)).astype(np.float32)
    result = fit(teacher, student, x, FitOptions(CPU, targets="select"))
    path = tmp_path / "fit.json"
    path.write_text(to_json(record_of(result.report)))
    before, after = (
        compare(teacher, model, x, CPU, blocks=True, block_map=str(path)).blocks
        for model in (student, result.model)
    )
    channels = {block.student: block.channels for block in result.report.blocks}
    assert [block.channels for block in after] == [channels[block.student] for block in after]
    assert after[-1].error is not None
    assert before[-1].error is not None
    assert after[-1].error < before[-1].error

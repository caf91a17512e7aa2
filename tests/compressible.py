"""Small teachers for tests of ``compress``, and what these share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from fskd_onnx.compress_options import CompressOptions
from fskd_onnx.compress_results import Plan
from fskd_onnx.compression.rewrite import carry_out
from fskd_onnx.options import RunOptions
from fskd_onnx.passes import export
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.teacher_analysis import prepared, study_teacher
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from tests.helpers import Array, build, check
from tests.networks import NETWORKS

CPU = RunOptions(providers=("cpu",))

TEXTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # Two residual blocks between a stem and a head.
    "two blocks": (
        """g (float[N,3,5,5] x) => (float[N,4] z) <float[8,3,3,3] w1, float[8] b1,
          float[12,8,3,3] w2, float[12] b2, float[8,12,3,3] w3, float[8] b3,
          float[8,8,3,3] w4, float[8] b4, float[8,8,3,3] w5, float[8] b5,
          float[8,4] w6, float[4] b6> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] y2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Relu (y2)
            [c3] y3 = Conv <pads = [1,1,1,1]> (r2, w3, b3)
            s1 = Add (y3, r1)
            r3 = Relu (s1)
            [c4] y4 = Conv <pads = [1,1,1,1]> (r3, w4, b4)
            r4 = Relu (y4)
            [c5] y5 = Conv <pads = [1,1,1,1]> (r4, w5, b5)
            s2 = Add (r3, y5)
            r5 = Relu (s2)
            p = GlobalAveragePool (r5)
            f = Flatten (p)
            [fc] z = Gemm (f, w6, b6)
        }""",
        {},
    ),
    # A gate of two pointwise convolutions scales what a depthwise one gives.
    "gate": (
        """g (float[N,3,6,6] x) => (float[N,5,6,6] z) <float[12,3,1,1] w1, float[12] b1,
          float[12,1,3,3] w2, float[12] b2, float[6,12,1,1] w3, float[6] b3,
          float[12,6,1,1] w4, float[12] b4, float[5,12,1,1] w5, float[5] b5> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [dw] y2 = Conv <group = 12, pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Relu (y2)
            m = GlobalAveragePool (r2)
            [sq] y3 = Conv (m, w3, b3)
            r3 = Relu (y3)
            [ex] y4 = Conv (r3, w4, b4)
            e = Sigmoid (y4)
            t = Mul (r2, e)
            [c5] z = Conv (t, w5, b5)
        }""",
        {},
    ),
    # BatchNormalization behind each of two convolutions; of the first, some scales are small.
    "normalized": (
        """g (float[N,3,6,6] x) => (float[N,4,4,4] z) <float[8,3,3,3] w1, float[8] g1, float[8] h1,
          float[8] m1, float[8] v1, float[8,8,3,3] w2, float[8] g2, float[8] h2, float[8] m2,
          float[8] v2, float[4,8,1,1] w3, float[4] b3> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1)
            n1 = BatchNormalization (y1, g1, h1, m1, v1)
            r1 = Relu (n1)
            [c2] y2 = Conv (r1, w2)
            n2 = BatchNormalization (y2, g2, h2, m2, v2)
            r2 = Relu (n2)
            [c3] z = Conv (r2, w3, b3)
        }""",
        {"g1": [1, 0.1, 1, 1, 0.2, 1, 0.1, 1]},
    ),
    # Both convolutions between the first and the last read the same weights.
    "shared": (
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[8,3,1,1] w1, float[8] b1,
          float[8,8,3,3] w2, float[8] b2, float[4,8,1,1] w3> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [c2] y2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Relu (y2)
            [c3] y3 = Conv <pads = [1,1,1,1]> (r2, w2, b2)
            r3 = Relu (y3)
            [c4] z = Conv (r3, w3)
        }""",
        {},
    ),
    # Channels with constants of their own: a slope, and a factor behind an activation.
    "slopes": (
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[8,3,3,3] w1, float[8] b1,
          float[8,1,1] slope, float[8,1,1] factor, float[4,8,1,1] w2> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = PRelu (y1, slope)
            t1 = Sigmoid (r1)
            m1 = Mul (t1, factor)
            [c2] z = Conv (m1, w2)
        }""",
        {},
    ),
    # The samples are on the second axis.
    "time first": (
        """g (float[3,N,8] x) => (float[3,N,5] z) <float[8,8] w1, float[8] b1, float[8,5] w2> {
            [p1] q1 = MatMul (x, w1)
            y1 = Add (q1, b1)
            r1 = Relu (y1)
            [p2] z = MatMul (r1, w2)
        }""",
        {},
    ),
    # Nodes that read a part of the channels that go together.
    "parts": (
        """g (float[N,3,4] x) => (float[N,3,5] z) <float[4,8] w1, float[8] b1, float[8,6] w2,
          float[7,6] w3, float[13,5] w4, int64[2] sizes = {7, 7}> {
            [p1] q1 = MatMul (x, w1)
            y1 = Add (q1, b1)
            r1 = Relu (y1)
            [p2] y2 = MatMul (r1, w2)
            c = Concat <axis = 2> (y2, r1)
            d, e = Split <axis = 2> (c, sizes)
            [p3] y3 = MatMul (d, w3)
            r3 = Relu (y3)
            f = Concat <axis = 2> (r3, e)
            [p4] z = MatMul (f, w4)
        }""",
        {},
    ),
    # One linear node of one tap and one channel: nothing can go.
    "nothing": (
        """g (float[N,1,4,4] x) => (float[N,1,4,4] z) <float[1,1,1,1] w1, float[1] b1> {
            [c1] z = Conv (x, w1, b1)
        }""",
        {},
    ),
}


def teacher(name: str, seed: int = 0) -> onnx.ModelProto:
    """Give one of the networks of this module or of ``tests.networks``."""
    if name in NETWORKS:
        return NETWORKS[name].teacher(seed)
    text, values = TEXTS[name]
    return build(text, values, seed)


def samples_of(model: onnx.ModelProto, count: int = 24, seed: int = 5) -> dict[str, Array]:
    """Draw values that differ from sample to sample; open extents get 6."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for value in model.graph.input:
        shape = [dim.dim_value or 6 for dim in value.type.tensor_type.shape.dim]
        drawn[value.name] = rng.standard_normal([count, *shape[1:]]).astype(np.float32)
    return drawn


def options(**given: Any) -> CompressOptions:
    """Give options of a run on the processor, with widths of any number unless told."""
    return CompressOptions(**{"run": CPU, "round_to": 1, **given})


def loaded(model: onnx.ModelProto) -> LoadedModel:
    return prepared(LoadedModel.load(model))


def study(
    model: onnx.ModelProto, samples: Mapping[str, Array] | None = None, **given: Any
) -> TeacherStudy:
    """Analyse a teacher."""
    own, chosen, runtime = loaded(model), options(**given), cpu()
    if samples is None:
        return study_teacher(own, chosen, None, runtime)
    with TensorStore() as store:
        read = open_samples(samples, own, chosen.run)
        divided = divide_samples((own,), read, chosen.fit, store, runtime)
        return study_teacher(own, chosen, divided, runtime)


def cpu() -> Runtime:
    return open_runtime(CPU.providers)


def random_levels(study: TeacherStudy, rng: np.random.Generator, share: float = 0.5) -> list[int]:
    """Draw a level for a share of the units; the others are whole."""
    return [
        int(rng.integers(len(unit.levels))) if rng.random() < share else 0
        for unit in study.candidates
    ]


def carried_out(study: TeacherStudy, plan: Plan) -> onnx.ModelProto:
    """Give the checked graph of a plan."""
    graph = study.model.graph()
    carry_out(plan, graph)
    made = export(graph, like=study.model.canonical)
    check(made)
    return made

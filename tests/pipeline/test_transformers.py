"""Transformers, however they are written: all projections are paired, and a fit helps as much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxsim
import pytest

from fskd_onnx import FitOptions, fit
from fskd_onnx.pipeline.match import match
from fskd_onnx.results import BlockPair
from tests.helpers import Array, run
from tests.transformers import (
    Parameters,
    Written,
    bert,
    drawn,
    fewer_heads,
    images,
    narrower,
    sentences,
    vit,
)

NETWORKS = {"vit": (vit, images), "bert": (bert, sentences)}
FORMS = {
    "rows": Written(linear="Gemm"),
    "rows of computed extents": Written(linear="Gemm of computed rows"),
    "rows that stay": Written(linear="Gemm of rows"),
    "matrices on the left": Written(linear="MatMul from the left"),
    "Einsum": Written(linear="Einsum"),
    "norms with Pow": Written(normalization="Pow", gelu="Erf last"),
    "norms with Mul": Written(normalization="Mul", gelu="Tanh"),
    "Gelu": Written(gelu="Gelu", opset=20),
    "QuickGELU": Written(gelu="Sigmoid"),
    "joined": Written(joined=True),
    "joined rows": Written(linear="Gemm", joined=True),
}
PARAMETERS = drawn()


def error(model: onnx.ModelProto, teacher: onnx.ModelProto, inputs: dict[str, Array]) -> float:
    [found], [wanted] = (list(run(m, inputs).values()) for m in (model, teacher))
    return float(np.sum((found - wanted) ** 2) / np.sum((wanted - wanted.mean(axis=0)) ** 2))


def all_paired(teacher: onnx.ModelProto, student: onnx.ModelProto) -> list[BlockPair]:
    pairs = [pair for pair in match(teacher, student).pairs if pair.op != "Gather"]
    assert [(pair.student, pair.reason) for pair in pairs if pair.reason] == []
    assert all(pair.channels is not None for pair in pairs)
    return pairs


def kept_rows(teacher: Parameters, student: Parameters, name: str) -> list[int]:
    """Return which rows of a matrix a student has, a joined one where there are several names.

    No two rows have the same bias.
    """
    wide, narrow = (
        np.concatenate([p[f"{part}.bias"] for part in name.split()]) for p in (teacher, student)
    )
    return [int(np.flatnonzero(wide == bias)[0]) for bias in narrow]


@pytest.mark.parametrize(
    ("cut", "form"),
    [(narrower, form) for form in FORMS] + [(fewer_heads, form) for form in list(FORMS)[::3]],
)
def test_all_projections_find_their_channels(
    cut: Callable[[Parameters], Parameters], form: str
) -> None:
    write, _ = NETWORKS[["vit", "bert"][list(FORMS).index(form) % 2]]
    written, parameters = FORMS[form], cut(PARAMETERS)
    student = write(parameters, written)
    layers = ["q k v"] if written.joined else ["q", "k", "v"]
    layers += ["out", "up", "down"]
    expected = [
        kept_rows(PARAMETERS, parameters, " ".join(f"{i}.{part}" for part in layer.split()))
        for i in range(2)
        for layer in layers
    ]
    plain = Written(gelu=written.gelu, opset=written.opset)
    for teacher in (write(PARAMETERS, written), write(PARAMETERS, plain)):
        found = [list(pair.channels or ()) for pair in all_paired(teacher, student)]
        first = 1 if write is vit else 0
        assert found[first : first + len(expected)] == expected


def test_projections_that_a_teacher_joins_are_found_one_by_one() -> None:
    student = narrower(PARAMETERS)
    for form in ("rows", "rows of computed extents", "Einsum"):
        for joined in ("joined", "joined rows"):
            pairs = all_paired(vit(PARAMETERS, FORMS[joined]), vit(student, FORMS[form]))
            assert len(pairs) == 14
            assert all(pair.channels == tuple(range(24)) for pair in pairs[1:5])


@pytest.mark.parametrize(
    ("network", "form"), [("vit", None), ("bert", "rows"), ("vit", "rows that stay")]
)
def test_half_of_the_feed_forward_width_is_fitted(network: str, form: str | None) -> None:
    write, draw = NETWORKS[network]
    written = FORMS[form] if form else Written()
    teacher, student = write(PARAMETERS), write(narrower(PARAMETERS), written)
    fitted = fit(teacher, student, draw(200, seed=1), FitOptions(targets="select"))
    fresh = draw(300, seed=77)
    before, after = (error(model, teacher, fresh) for model in (student, fitted.model))
    assert before > 0.2
    assert after <= before / 4


@pytest.mark.parametrize("network", NETWORKS)
def test_a_simplified_student_is_fitted_as_well(network: str) -> None:
    write, draw = NETWORKS[network]
    teacher, student = write(PARAMETERS), write(narrower(PARAMETERS))
    simple, _ = onnxsim.simplify(student)
    assert {node.op_type for node in simple.graph.node} >= {"Gemm", "Reshape"}
    all_paired(teacher, simple)
    samples, fresh = draw(200, seed=1), draw(300, seed=77)
    options = FitOptions(targets="select")
    errors = [
        error(fit(teacher, model, samples, options).model, teacher, fresh)
        for model in (student, simple)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)

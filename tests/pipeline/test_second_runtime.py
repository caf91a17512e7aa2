"""Fitted models are deployable: OpenVINO gives what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import openvino
import pytest

from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.coverage import fit_form
from tests.forms import GROUPS, Form
from tests.helpers import run

# It runs no functions of a model, fitted or not.
LACKING = ("function of the model",)
CASES = {
    name: form
    for group, forms in GROUPS.items()
    for name, form in forms.items()
    if not form.fails and name not in LACKING and (group != "Model zoo" or name == "squeezenet")
}
# It computes float16 and float64 in float32.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def core() -> openvino.Core:
    return openvino.Core()


@pytest.mark.parametrize("name", CASES)
def test_openvino_agrees_with_onnx_runtime(name: str, core: openvino.Core) -> None:
    form: Form = CASES[name]
    model = fit_form(form).model
    size = fixed_batch_size(input_specs(model))
    feeds = {key: value[:size] for key, value in form.samples(seed=77).items()}
    expected = run(model, feeds)
    compiled = core.compile_model(
        core.read_model(model=model.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    results = compiled(feeds)
    for index, value in enumerate(expected.values()):
        difference = np.abs(results[index].astype(np.float64) - value.astype(np.float64))
        assert difference.max() <= TOLERANCE * np.abs(value).max()

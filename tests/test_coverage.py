"""Every form of a graph goes through a whole fit, as the document says, and can be deployed."""

from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.coverage import DOCUMENT, assert_sound, fit_form, row
from tests.forms import GROUPS, Form
from tests.helpers import run

FORMS = {name: form for forms in GROUPS.values() for name, form in forms.items()}
FITTED = [name for name, form in FORMS.items() if not form.fails]
REFUSED = [name for name, form in FORMS.items() if form.fails]
LINES = DOCUMENT.read_text(encoding="utf-8").splitlines()

# It runs no functions of a model, fitted or not.
NOT_IN_OPENVINO = ("function of the model",)
# It computes float16 and float64 in float32.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def core() -> openvino.Core:
    return openvino.Core()


@pytest.mark.parametrize("name", FITTED)
def test_a_form_is_fitted_as_documented_and_runs_elsewhere(name: str, core: openvino.Core) -> None:
    form = FORMS[name]
    result = fit_form(form)
    assert_sound(form, result)
    assert row(name, form, result) in LINES
    if name not in NOT_IN_OPENVINO:
        assert_openvino_agrees(result.model, form, core)


def assert_openvino_agrees(model: onnx.ModelProto, form: Form, core: openvino.Core) -> None:
    """Check that OpenVINO gives what ONNX Runtime gives."""
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


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_is_refused_as_documented(name: str) -> None:
    form = FORMS[name]
    with pytest.raises(FskdError, match=form.fails) as caught:
        fit_form(form)
    assert "\n" not in str(caught.value)
    assert row(name, form, None) in LINES


def test_the_document_names_every_form_once() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in LINES if "| " in line]
    assert [name for name in rows if name != "form"] == list(FORMS)

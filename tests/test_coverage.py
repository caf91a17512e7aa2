"""Every form of a graph goes through a whole fit, as the document says."""

from __future__ import annotations

import pytest

from fskd_onnx.errors import FskdError
from tests.coverage import DOCUMENT, assert_sound, fit_form, row
from tests.forms import GROUPS, Form

CASES = [(name, form) for forms in GROUPS.values() for name, form in forms.items()]


@pytest.mark.parametrize(("name", "form"), CASES, ids=[name for name, _ in CASES])
def test_a_form_is_fitted_as_documented(name: str, form: Form) -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    if form.fails:
        with pytest.raises(FskdError, match=form.fails) as caught:
            fit_form(form)
        assert "\n" not in str(caught.value)
        assert row(name, form, None) in lines
        return
    result = fit_form(form)
    assert_sound(form, result)
    assert row(name, form, result) in lines


def test_the_document_names_every_form_once() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if "| " in line]
    assert [name for name in rows if name != "form"] == [name for name, _ in CASES]

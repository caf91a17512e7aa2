"""There is a pass for each form, and its ranks are those of all forms."""

from __future__ import annotations

import pytest

from fskd_onnx.passes.analysis.factorizable import Form
from fskd_onnx.passes.factorizations import FACTORIZATIONS
from tests.passes.factorized import FORMS


@pytest.mark.parametrize("form", Form)
def test_each_form_has_its_pass(form: Form) -> None:
    ranks = {"n": FORMS[form][1]}
    factorize = FACTORIZATIONS[form].of(ranks)
    assert factorize.form == form
    assert factorize.chosen == ranks

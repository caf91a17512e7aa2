"""The public names exist, and importing the package is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fskd_onnx
import fskd_onnx.errors

FUNCTIONS = {"compare", "fit", "match", "save_model"}


@pytest.mark.parametrize("name", fskd_onnx.__all__)
def test_every_public_name_resolves(name: str) -> None:
    found = getattr(fskd_onnx, name)
    assert callable(found)
    assert found.__name__ == name
    assert found.__doc__


def test_the_public_names_are_functions_records_and_errors() -> None:
    assert set(fskd_onnx.__all__) == set(fskd_onnx._HOME)
    assert set(fskd_onnx.__all__) >= FUNCTIONS
    errors = [name for name in fskd_onnx.__all__ if name.endswith("Error")]
    assert all(issubclass(getattr(fskd_onnx, name), fskd_onnx.FskdError) for name in errors)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'fskd_onnx' has no attribute 'train'"):
        fskd_onnx.train  # noqa: B018


def test_every_error_is_public() -> None:
    errors = {name for name, value in vars(fskd_onnx.errors).items() if isinstance(value, type)}
    assert {name for name in errors if name.endswith("Error")} <= set(fskd_onnx.__all__)


@pytest.mark.parametrize(
    "statement",
    ["import fskd_onnx", "from fskd_onnx import FitOptions, FitReport, SamplesError"],
)
def test_importing_does_not_load_the_runtime(statement: str) -> None:
    heavy = "{'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'scipy', 'torch', 'PIL'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_does_not_load_the_runtime_before_a_command_runs() -> None:
    code = "import sys, fskd_onnx.cli; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

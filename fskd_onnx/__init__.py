"""Make compressed neural networks accurate again, without training.

``fit(teacher, student, samples, FitOptions(...))`` does what the command line does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fskd_onnx.options import FitOptions, RunOptions
    from fskd_onnx.pipeline import FitResult, fit
    from fskd_onnx.preprocess import Preprocess

__all__ = ["FitOptions", "FitResult", "Preprocess", "RunOptions", "fit"]

_HOME = {
    "FitOptions": "options",
    "FitResult": "pipeline",
    "Preprocess": "preprocess",
    "RunOptions": "options",
    "fit": "pipeline",
}


def __getattr__(name: str) -> object:
    """Load what is asked for: ONNX Runtime takes longer to import than ``--help`` should."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fskd_onnx.{_HOME[name]}"), name)

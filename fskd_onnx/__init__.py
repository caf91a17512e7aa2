"""Make compressed neural networks accurate again, without training.

The public names are `fit`, `compress`, `match` and `compare`, which do what the commands of the
same names do, `save_model`, the options and results of these functions, and the errors that they
raise::

    result = fit("teacher.onnx", "student.onnx", "samples", FitOptions(...))
    save_model(result.model, "fused.onnx", like="student.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fskd_onnx.compare_results import Comparison
    from fskd_onnx.compress_options import CompressOptions
    from fskd_onnx.compress_results import CompressReport, CompressResult, Plan
    from fskd_onnx.errors import (
        FskdError,
        MatchError,
        MissingNormalizationError,
        ModelError,
        NoImprovementError,
        OptionError,
        OutOfMemoryError,
        PlanError,
        PreprocessError,
        ProviderError,
        SamplesError,
        TargetError,
    )
    from fskd_onnx.options import FitOptions, Preprocess, RunOptions
    from fskd_onnx.pipeline.compare import compare
    from fskd_onnx.pipeline.compress import compress
    from fskd_onnx.pipeline.fit import fit
    from fskd_onnx.pipeline.match import match
    from fskd_onnx.results import FitReport, FitResult, Matching
    from fskd_onnx.serialization.model_files import save_model

# The module of each public name.
_HOME = {
    "Comparison": "compare_results",
    "CompressOptions": "compress_options",
    "CompressReport": "compress_results",
    "CompressResult": "compress_results",
    "FitOptions": "options",
    "FitReport": "results",
    "FitResult": "results",
    "FskdError": "errors",
    "MatchError": "errors",
    "Matching": "results",
    "MissingNormalizationError": "errors",
    "ModelError": "errors",
    "NoImprovementError": "errors",
    "OutOfMemoryError": "errors",
    "OptionError": "errors",
    "Plan": "compress_results",
    "PlanError": "errors",
    "Preprocess": "options",
    "PreprocessError": "errors",
    "ProviderError": "errors",
    "RunOptions": "options",
    "SamplesError": "errors",
    "TargetError": "errors",
    "compare": "pipeline.compare",
    "compress": "pipeline.compress",
    "fit": "pipeline.fit",
    "match": "pipeline.match",
    "save_model": "serialization.model_files",
}

__all__ = [
    "Comparison",
    "CompressOptions",
    "CompressReport",
    "CompressResult",
    "FitOptions",
    "FitReport",
    "FitResult",
    "FskdError",
    "MatchError",
    "Matching",
    "MissingNormalizationError",
    "ModelError",
    "NoImprovementError",
    "OptionError",
    "OutOfMemoryError",
    "Plan",
    "PlanError",
    "Preprocess",
    "PreprocessError",
    "ProviderError",
    "RunOptions",
    "SamplesError",
    "TargetError",
    "compare",
    "compress",
    "fit",
    "match",
    "save_model",
]


def __getattr__(name: str) -> object:
    """Import the module that defines a name when the name is first used.

    ONNX Runtime takes longer to import than ``--help`` should take.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

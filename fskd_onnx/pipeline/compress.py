"""The story of ``compress``: analyse, choose, rewrite, fit, report."""

from __future__ import annotations

from fskd_onnx.compress_options import CompressOptions
from fskd_onnx.compress_results import CompressResult
from fskd_onnx.errors import FskdError
from fskd_onnx.option_checks import given
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource, check_source


def compress(
    teacher: ModelSource,
    samples: SampleSource | None = None,
    options: CompressOptions | None = None,
) -> CompressResult:
    """Make a smaller student from a teacher, and fit it.

    Args:
        teacher: the original network.
        samples: a few unlabelled samples, see ``fskd_onnx.samples.sources.load_samples``; None for
            a student that is not fitted.
        options: see ``CompressOptions``.

    Raises:
        TargetError: the target cannot be reached.
        FskdError: a file, the samples or the machine cannot be used.
    """
    check_source(teacher, "teacher")
    chosen = given(options, "options", CompressOptions)
    if samples is None:
        chosen.check_without_samples()
    model = LoadedModel.load(teacher)
    raise FskdError(f"{model.name}: this version makes no students; give one to fskd-onnx fit")

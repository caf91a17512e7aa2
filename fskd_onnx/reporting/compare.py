"""Compare two models on samples: their agreement, and their accuracy where there are labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fskd_onnx.options import RunOptions
from fskd_onnx.reporting.agreement import accuracy, agreement, finite_samples
from fskd_onnx.results import Comparison
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import check_same_interface, input_specs, output_names
from fskd_onnx.serialization.model_files import ModelSource, load_model, source_name


def compare(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: RunOptions | None = None,
    labels: str | Path | None = None,
) -> Comparison:
    """Compare a student with its teacher on samples.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: see ``fskd_onnx.samples.sources.load_samples``.
        options: how to read and run.
        labels: a file of class labels, see ``fskd_onnx.samples.labels.load_labels``.

    Raises:
        FskdError: a file cannot be used, or the models do not fit each other.
    """
    options = options or RunOptions()
    models = [load_model(teacher), load_model(student)]
    names = [source_name(teacher), source_name(student)]
    check_same_interface(*models, *names)
    loaded = load_samples(
        samples, input_specs(models[0]), options.preprocess, options.max_samples, options.seed
    )
    truth = None if labels is None else loaded.labels(labels)
    runtime = open_runtime(options.providers)
    everything = np.arange(len(loaded), dtype=np.intp)
    outputs = [
        forward(runtime, model, loaded, everything, options.batch_size, name)
        for model, name in zip(models, names, strict=True)
    ]
    finite = finite_samples(outputs, [output_names(model) for model in models], names)
    outputs = [[values[finite] for values in of_model] for of_model in outputs]
    if truth is not None:
        truth = truth[finite]
    of_teacher, of_student = (None if truth is None else accuracy(out, truth) for out in outputs)
    left_out = tuple(loaded.describe(index) for index in np.flatnonzero(~finite).tolist())
    return Comparison(agreement(*outputs), int(finite.sum()), of_teacher, of_student, left_out)

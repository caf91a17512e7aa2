"""Compare two models on samples: their agreement, and their accuracy where there are labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from fskd_onnx.option_checks import check_path, given
from fskd_onnx.options import RunOptions
from fskd_onnx.reporting.agreement import accuracy, worst_samples
from fskd_onnx.reporting.comparable import comparable
from fskd_onnx.results import Comparison
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.out_of_memory import with_enough_memory
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import input_specs, output_names, pair_interfaces
from fskd_onnx.serialization.model_files import (
    ModelSource,
    check_sources,
    load_model,
    source_name,
)
from fskd_onnx.versions import versions_used

_PARTS = np.linspace(0, 1, 21)


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
    check_sources(teacher, student)
    options = given(options, "options", RunOptions)
    if labels is not None:
        check_path(labels, "labels")
    models = [load_model(teacher), load_model(student)]
    names = [source_name(teacher), source_name(student)]
    interface = pair_interfaces(*models, *names)
    loaded = load_samples(
        samples, input_specs(models[0]), options.preprocess, options.max_samples, options.seed
    )
    truth = None if labels is None else loaded.labels(labels)
    runtime = open_runtime(options.providers)
    everything = np.arange(len(loaded), dtype=np.intp)
    results = with_enough_memory(
        lambda: [
            forward(runtime, model, loaded, everything, options.batch_size, name, inputs)
            for model, name, inputs in zip(models, names, (None, interface.inputs), strict=True)
        ],
        options.batch_size,
    )
    of_both = list(zip(output_names(models[0]), interface.outputs, strict=True))
    compared = comparable((results[0], results[1]), of_both, (names[0], names[1]))
    if truth is not None:
        truth = truth[compared.judged]
    of_teacher, of_student = (
        None if truth is None else accuracy(outputs, truth)
        for outputs in (compared.teacher, compared.student)
    )
    errors = compared.sample_errors(compared.student)
    judged = np.flatnonzero(compared.judged).tolist()
    return Comparison(
        teacher=names[0],
        student=names[1],
        options={**asdict(options), "labels": labels},
        providers=runtime.providers,
        agreement=compared.agreement(compared.student),
        count=int(compared.judged.sum()),
        accuracy_teacher=of_teacher,
        accuracy_student=of_student,
        samples_left_out=tuple(map(loaded.describe, np.flatnonzero(~compared.judged).tolist())),
        outputs_left_out=compared.outputs_left_out,
        worst_samples=worst_samples(errors, lambda at: loaded.describe(judged[at])),
        error_quantiles=tuple(np.quantile(errors, _PARTS).tolist()),
        versions=versions_used(),
    )

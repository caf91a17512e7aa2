"""Agreement of two models on samples, and accuracy where there are labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.engine import Batch, default_batch_size, plan_batches, run
from fskd_onnx.errors import ModelError
from fskd_onnx.model_io import (
    ModelSource,
    fixed_batch_size,
    input_specs,
    load_model,
    output_names,
    source_name,
)
from fskd_onnx.options import RunOptions
from fskd_onnx.providers import Runtime, open_runtime
from fskd_onnx.report import Agreement, Comparison
from fskd_onnx.samples import InputSpec, SampleReader, SampleSource, load_samples
from fskd_onnx.store import download, upload

Outputs = list[NDArray[np.generic]]

# The number and name of an error of ONNX Runtime, and where in its source it was raised.
_POSITION = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(\S+\.(cc|h):\d+ .*?\) (?=[A-Z]))?")


def compare(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: RunOptions | None = None,
    labels: str | Path | None = None,
) -> Comparison:
    """Run two models on the same samples.

    Args:
        teacher: the reference.
        student: the model to hold against it.
        samples: see ``fskd_onnx.samples.load_samples``.
        options: how to read and run.
        labels: a file of class labels, see ``fskd_onnx.samples.load_labels``.

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
    accuracies = [None, None] if truth is None else [_accuracy(out, truth) for out in outputs]
    return Comparison(agreement(outputs[0], outputs[1]), len(loaded), *accuracies)


def check_same_interface(
    teacher: onnx.ModelProto, student: onnx.ModelProto, teacher_name: str, student_name: str
) -> None:
    """Check that two models take the same inputs and give as many outputs.

    Raises:
        ModelError: they do not.
    """
    specs = [input_specs(model) for model in (teacher, student)]
    if len(specs[0]) != len(specs[1]) or not all(map(_take_the_same, *specs)):
        listed = [", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in part) for part in specs]
        raise ModelError(
            f"{student_name}: takes other inputs ({listed[1]}) than {teacher_name} ({listed[0]}); "
            "give a student of that teacher"
        )
    counts = [len(output_names(model)) for model in (teacher, student)]
    if counts[0] != counts[1]:
        raise ModelError(
            f"{student_name}: has {counts[1]} outputs and {teacher_name} has {counts[0]}; "
            "give a student of that teacher"
        )


def _take_the_same(one: InputSpec, other: InputSpec) -> bool:
    """Whether one tensor can be fed to both inputs; batches are divided as each model wants."""
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    extents = zip(one.shape[1:], other.shape[1:], strict=True)
    return all(a == b or a is None or b is None for a, b in extents)


def forward(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: SampleReader,
    indices: NDArray[np.intp],
    batch_size: int | None,
    name: str,
) -> Outputs:
    """Run a whole model on some samples.

    Args:
        runtime: where.
        model: any model that takes the samples' inputs, in their order, under whatever names.
        samples: the samples.
        indices: which of them.
        batch_size: samples per run; None chooses by the size of the inputs.
        name: what to call the model in errors.

    Returns:
        Each output of the model for all samples, in order.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    specs = input_specs(model)
    size = batch_size or default_batch_size(samples.take(indices[:1]))
    batches = plan_batches([indices], size, fixed_batch_size(specs))
    collected: list[Outputs] = []
    wanted = output_names(model)
    try:
        session = runtime.session(model)
        for batch in batches:
            arrays = samples.take(batch.samples).values()
            feeds = dict(zip([spec.name for spec in specs], arrays, strict=True))
            results = run(session, upload(feeds, runtime.device), wanted, runtime.device)
            values = {output: download(value) for output, value in results.items()}
            for output, value in values.items():
                _check_axis(value, output, name)
            collected.append([_unpad(value, batch) for value in values.values()])
    except ModelError:
        raise
    except Exception as error:
        # ONNX Runtime raises a dozen unrelated types; which one says nothing to a user.
        first = _POSITION.sub("", str(error).strip().splitlines()[0])
        raise ModelError(f"{name}: ONNX Runtime cannot run it: {first}") from error
    return [np.concatenate(parts) for parts in zip(*collected, strict=True)]


def _check_axis(value: NDArray[np.generic], output: str, name: str) -> None:
    if value.ndim == 0:
        raise ModelError(
            f"{name}: its output '{output}' is one number for all samples; take it out of the "
            "graph's outputs"
        )


def agreement(teacher: Outputs, student: Outputs) -> Agreement:
    """Hold a student's outputs against the teacher's.

    The error is ||student - teacher||^2 / ||teacher - mean||^2 over all outputs, the mean being
    the teacher's mean output. Where the teacher does not vary, as over a single sample, it is
    relative to ||teacher||^2, and where that is zero as well, absolute. The top-1 class is taken
    from the first output that is a row of scores per sample.

    Raises:
        ModelError: the outputs differ in their shapes.
    """
    error = energy = size = 0.0
    for index, (t, s) in enumerate(zip(teacher, student, strict=True)):
        if t.shape != s.shape:
            raise ModelError(
                f"output {index + 1} of the student has the shape {s.shape[1:]} per sample and "
                f"that of the teacher {t.shape[1:]}; give a student whose outputs are the teacher's"
            )
        exact = t.astype(np.float64)
        error += float(np.sum((s.astype(np.float64) - exact) ** 2))
        energy += float(np.sum((exact - exact.mean(axis=0)) ** 2))
        size += float(np.sum(exact**2))
    relative = error / (energy or size or 1.0)
    classes = [_scores(outputs) for outputs in (teacher, student)]
    top1 = None
    if classes[0] is not None and classes[1] is not None:
        top1 = float(np.mean(classes[0].argmax(1) == classes[1].argmax(1)))
    return Agreement(relative, top1)


def squared_errors(teacher: Outputs, student: Outputs) -> NDArray[np.float64]:
    """Return ||student - teacher||^2 of each sample, over all outputs."""
    errors = np.zeros(len(teacher[0]))
    for t, s in zip(teacher, student, strict=True):
        difference = s.astype(np.float64) - t.astype(np.float64)
        errors += np.sum(difference.reshape(len(t), -1) ** 2, axis=1)
    return errors


def _scores(outputs: Sequence[NDArray[np.generic]]) -> NDArray[np.generic] | None:
    flat = [
        out.reshape(len(out), -1) for out in outputs if max(out.shape[1:], default=1) == out[0].size
    ]
    return next((out for out in flat if out.shape[1] > 1), None)


def _accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float | None:
    scores = _scores(outputs)
    return None if scores is None else float(np.mean(scores.argmax(1) == labels))


def _unpad(values: NDArray[np.generic], batch: Batch) -> NDArray[np.generic]:
    return values[: batch.count]

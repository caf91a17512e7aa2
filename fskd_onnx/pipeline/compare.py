"""The story of ``compare``: run both on the samples, compare outputs, and more where asked for.

::

    load ─▶ open samples ─▶ run both ─▶ agreement, accuracy, worst samples
    ─▶ --blocks: errors of blocks                              block_errors
    ─▶ --time: both in turns                                   runtime.latency
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.compare_results import BlockError, Comparison, LatencyComparison
from fskd_onnx.errors import ModelError, SamplesError
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.option_checks import check_path, given
from fskd_onnx.options import RunOptions
from fskd_onnx.pipeline.block_errors import block_errors
from fskd_onnx.pipeline.divided_samples import stated_batch_sizes
from fskd_onnx.pipeline.networks import load_networks
from fskd_onnx.reporting.agreement import flat, right, scores_at, worst_samples
from fskd_onnx.reporting.comparable import Comparable, comparable
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.latency import compare_latency
from fskd_onnx.runtime.out_of_memory import with_enough_memory
from fskd_onnx.runtime.output_parts import output_parts
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.samples.proposal import proposing_preset
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import (
    InputSpec,
    input_specs,
    output_names,
)
from fskd_onnx.serialization.model_files import (
    ModelSource,
    check_sources,
    load_model,
    source_name,
)
from fskd_onnx.serialization.paired_interfaces import pair_interfaces
from fskd_onnx.versions import versions_used

_PARTS = np.linspace(0, 1, 21)


@threads_for()
def compare(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: RunOptions | None = None,
    labels: str | Path | None = None,
    *,
    blocks: bool = False,
    block_map: str | None = None,
    time: bool = False,
) -> Comparison:
    """Compare a student with its teacher on samples.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: see ``fskd_onnx.samples.sources.load_samples``.
        options: how to read and run.
        labels: a file of class labels, see ``fskd_onnx.samples.labels.load_labels``; or
            "folders": the names of the samples' folders are their classes.
        blocks: whether to compare block outputs too.
        block_map: of these, as ``map`` of ``FitOptions``.
        time: whether to measure how long both take.

    Raises:
        FskdError: a file cannot be used, or the models do not fit each other.
    """
    check_sources(teacher, student)
    options = given(options, "options", RunOptions)
    for path, name in ((labels, "labels"), (block_map, "block_map")):
        if path is not None:
            check_path(path, name)
    models = load_model(teacher), load_model(student)
    names = source_name(teacher), source_name(student)
    interface = pair_interfaces(*models, *names)
    with proposing_preset(models[0]):
        loaded = load_samples(
            samples,
            input_specs(models[0]),
            options.preprocess,
            options.max_samples,
            options.seed,
            listed=options.samples_list,
        )
    truth = None if labels is None else loaded.labels(labels)
    inputs = tuple(input_specs(models[0])), tuple(interface.inputs)
    run_size = _run_size(inputs, names, loaded, options.batch_size) if time else None
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
    parts = with_enough_memory(
        lambda: output_parts(
            runtime, models[0], loaded, options.batch_size, names[0], None, results[0].axes
        ),
        options.batch_size,
    )
    compared = comparable((results[0], results[1]), of_both, names, parts)
    shares = None if truth is None else _accuracies(compared, truth[compared.judged], str(labels))
    errors = compared.sample_errors(compared.student)
    judged = np.flatnonzero(compared.judged).tolist()
    found: tuple[BlockError, ...] = ()
    if blocks:
        networks = load_networks(teacher, student)
        found = with_enough_memory(
            lambda: block_errors(networks, loaded, runtime, options, block_map),
            options.batch_size,
        )
    latency = None
    if run_size is not None:
        latency = _latency(models, names, inputs, loaded, runtime, run_size)
    asked = {"labels": labels, "blocks": blocks, "map": block_map, "time": time}
    return Comparison(
        teacher=names[0],
        student=names[1],
        options={**asdict(options), **asked},
        providers=runtime.providers,
        agreement=compared.agreement(compared.student),
        count=int(compared.judged.sum()),
        accuracy_teacher=None if shares is None else shares[0],
        accuracy_student=None if shares is None else shares[1],
        samples_left_out=tuple(map(loaded.describe, np.flatnonzero(~compared.judged).tolist())),
        outputs_left_out=compared.outputs_left_out,
        worst_samples=worst_samples(errors, lambda at: loaded.describe(judged[at])),
        error_quantiles=tuple(np.quantile(errors, _PARTS).tolist()),
        versions=versions_used(),
        outputs=tuple(compared.output_agreements()),
        accuracy_errors=None if shares is None else shares[2:],
        blocks=found,
        latency=latency,
    )


def _accuracies(
    compared: Comparable, labels: NDArray[np.int64], file: str
) -> tuple[float, float, float, float, float] | None:
    """Return both accuracies, and the standard errors of both and of their difference.

    Those of a share p of n samples are sqrt(p (1 - p) / n); the difference is the mean of one
    number per sample, -1, 0 or 1.

    Returns:
        None where no output holds scores of classes.

    Raises:
        SamplesError: a label is no class of the output.
    """
    at = scores_at(compared.teacher, [name for name, _ in compared.names])
    if at is None:
        return None
    classes = flat(compared.teacher[at]).shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise SamplesError(
            f"{file}: holds the label {wrong[0]} and the output '{compared.names[at][0]}' has "
            f"{classes} classes; number classes from 0 to {classes - 1}"
        )
    one, other = (right(outputs[at], labels) for outputs in (compared.teacher, compared.student))
    root = np.sqrt(len(labels))
    spreads = one.std(), other.std(), (other.astype(int) - one).std()
    first, second, both = (float(spread / root) for spread in spreads)
    return float(one.mean()), float(other.mean()), first, second, both


def _run_size(
    inputs: tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]],
    names: tuple[str, str],
    loaded: Samples,
    batch_size: int | None,
) -> int:
    """Return how many samples both run at once when they are timed.

    Raises:
        ModelError: no number is one that both take.
    """
    stated = stated_batch_sizes(inputs, loaded)
    sizes = {size for size in stated if size is not None}
    if len(sizes) > 1:
        raise ModelError(
            f"{names[1]}: runs {stated[1]} samples at once and {names[0]} {stated[0]}, so their "
            "times cannot be compared; export both with one batch size, or leave out --time"
        )
    return next(iter(sizes), batch_size or 1)


def _latency(
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    names: tuple[str, str],
    inputs: tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]],
    loaded: Samples,
    runtime: Runtime,
    size: int,
) -> LatencyComparison:
    """Return how long both take on the first samples, so many at once."""
    taken = loaded.take(np.arange(size, dtype=np.intp) % len(loaded))
    arrays = [spec.joined(taken[spec.name]) for spec in loaded.inputs]
    feeds = [
        {spec.name: array for spec, array in zip(specs, arrays, strict=True)} for specs in inputs
    ]
    # A file may be compared with itself.
    both = dict(zip((f"teacher {names[0]}", f"student {names[1]}"), models, strict=True))
    found = compare_latency(both, feeds, runtime)
    return LatencyComparison(
        teacher=found.seconds[0],
        student=found.seconds[1],
        ratio=found.ratios[1],
        quartiles=found.quartiles[1],
        turns=found.turns,
        samples=size,
    )

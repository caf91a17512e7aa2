"""The samples of a call: opened, grouped, divided into folds and held-out ones, each read once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.splits import Splits, split_samples
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.first_reading import FirstReading
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.augment import Augmented
from fskd_onnx.samples.batches import default_batch_size
from fskd_onnx.samples.proposal import proposing_preset
from fskd_onnx.samples.reader import SampleReader, Samples
from fskd_onnx.samples.related import find_groups
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import InputSpec, fixed_batch_size

logger = logging.getLogger(__name__)

_LEAST_GROUPS = 3  # one held out, two folds


@dataclass(frozen=True)
class DividedSamples:
    """The samples of a call.

    Attributes:
        decoded: the samples, and moved copies of them behind, each read once.
        groups: samples of each independent group; identical ones are there once.
        splits: which of them are fitted on, and which give the verdict.
        batch_size: samples of every run, padded; None where any number runs.
    """

    decoded: DecodedSamples
    groups: list[NDArray[np.intp]]
    splits: Splits
    batch_size: int | None


def open_samples(source: SampleSource, teacher: LoadedModel, run: RunOptions) -> Samples:
    """Open the samples, which have to be enough to fit on some and check on others.

    Raises:
        SamplesError: they cannot be used, or are too few.
    """
    with proposing_preset(teacher.model):
        loaded = load_samples(
            source,
            teacher.inputs,
            run.preprocess,
            run.max_samples,
            run.seed,
            run.groups,
            run.samples_list,
        )
    if len(loaded) < _LEAST_GROUPS:
        found = "1 sample is" if len(loaded) == 1 else f"{len(loaded)} samples are"
        raise SamplesError(
            f"{loaded.name}: {found} too few to fit on some and check on others; "
            f"give at least {_LEAST_GROUPS}"
        )
    return loaded


def divide_samples(
    networks: Sequence[LoadedModel],
    loaded: Samples,
    options: FitOptions,
    store: TensorStore,
    runtime: Runtime,
) -> DividedSamples:
    """Read samples and divide them.

    Args:
        networks: all that run on them.
        loaded: the samples.
        options: how to fit.
        store: keeps the samples once they are read.
        runtime: where the networks run.

    Raises:
        SamplesError: they cannot be used, or too few of them are independent.
    """
    reading = FirstReading(loaded, store, taken_once=not options.augment)
    groups = _group(loaded, reading)
    stated = common_batch_size([network.inputs for network in networks], loaded)
    batch_size = stated or options.run.batch_size
    splits = _split(groups, loaded, options, batch_size)
    decoded = _decode(reading, splits, options, store, runtime)
    return DividedSamples(decoded, groups, splits, batch_size)


def _group(loaded: Samples, reading: FirstReading) -> list[NDArray[np.intp]]:
    """Divide the samples into independent groups: those given, else those that are found."""
    groups = find_groups(reading.fingerprints, loaded.groups)
    distinct = sum(map(len, groups))
    if distinct < len(loaded):
        logger.info("%d of %d samples are distinct", distinct, len(loaded))
    if len(groups) < distinct:
        logger.info("%d samples are %d independent groups", distinct, len(groups))
    if len(groups) >= _LEAST_GROUPS:
        return groups
    if distinct < _LEAST_GROUPS:
        reason, remedy = "all others are copies of these", "give other ones"
    elif loaded.groups is not None:
        reason, remedy = "the groups are those given", "give samples of more groups"
    else:
        reason = "those of a group look like crops or moved copies of each other"
        remedy = "give other ones, or say by --groups which belong together"
    found = "1 independent group" if len(groups) == 1 else f"{len(groups)} independent groups"
    raise SamplesError(
        f"{loaded.name}: samples of {found} are too few to fit on some and check on others "
        f"({len(loaded)} samples; {reason}); {remedy}, at least {_LEAST_GROUPS} groups"
    )


def _split(
    groups: list[NDArray[np.intp]],
    loaded: Samples,
    options: FitOptions,
    batch_size: int | None,
) -> Splits:
    """Divide the samples and their copies, into batches of a size that all networks take."""
    size = default_batch_size(loaded.shapes)
    copies = options.augment_copies + 1 if options.augment else 1
    return split_samples(groups, len(loaded), copies, options.run.seed, size, batch_size)


def stated_batch_sizes(inputs: Iterable[Sequence[InputSpec]], loaded: Samples) -> list[int | None]:
    """Return the number of samples that each of some networks insists on; None for any.

    Args:
        inputs: of each network.
        loaded: samples, which say along which axis of an input they lie.
    """
    return [
        fixed_batch_size(
            [
                replace(spec, axis=given.axis)
                for spec, given in zip(specs, loaded.inputs, strict=True)
            ]
        )
        for specs in inputs
    ]


def common_batch_size(inputs: Iterable[Sequence[InputSpec]], loaded: Samples) -> int | None:
    """Return the number of samples that batches are multiples of for all networks; None for any.

    Args:
        inputs: as of `stated_batch_sizes`.
        loaded: likewise.
    """
    stated = list(filter(None, stated_batch_sizes(inputs, loaded)))
    return math.lcm(*stated) if stated else None


def _decode(
    reading: FirstReading,
    splits: Splits,
    options: FitOptions,
    store: TensorStore,
    runtime: Runtime,
) -> DecodedSamples:
    """Return the samples in batches, with moved copies behind where these are asked for."""
    source: SampleReader = reading
    if options.augment:
        source = Augmented(reading, options.augment, options.run.seed)
    return DecodedSamples(source, splits.batches, store, runtime.device)

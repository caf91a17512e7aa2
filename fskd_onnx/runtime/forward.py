"""Whole models on samples: every output, sample by sample."""

from __future__ import annotations

import re

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.errors import FskdError, ModelError
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import download, upload
from fskd_onnx.samples.batches import Batch, default_batch_size, plan_batches
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs, output_names

Outputs = list[NDArray[np.generic]]


# The number and name of an error of ONNX Runtime, and where in its source it was raised.
_POSITION = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(\S+\.(cc|h):\d+ .*?\) (?=[A-Z]))?")


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
    size = batch_size or default_batch_size(samples.shapes)
    batches = plan_batches([indices], size, fixed_batch_size(specs))
    collected: list[Outputs] = []
    names = output_names(model)
    try:
        session = runtime.session(model)
        for batch in batches:
            arrays = samples.take(batch.samples).values()
            feeds = dict(zip([spec.name for spec in specs], arrays, strict=True))
            results = run(session, upload(feeds, runtime.device), names, runtime.device)
            values = {output: download(value) for output, value in results.items()}
            for output, value in values.items():
                _check_axis(value, output, name)
            collected.append([_unpad(value, batch) for value in values.values()])
    except FskdError:  # of the samples, or of where they are kept
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


def _unpad(values: NDArray[np.generic], batch: Batch) -> NDArray[np.generic]:
    return values[: batch.count]

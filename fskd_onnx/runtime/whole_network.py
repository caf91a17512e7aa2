"""A whole model that runs on samples; what is wrong is said of the node that it is wrong with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.errors import FskdError, ModelError, OutOfMemoryError
from fskd_onnx.runtime.out_of_memory import is_out_of_memory
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import first_line, run
from fskd_onnx.runtime.tensor_store import download, is_plain, upload
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import (
    InputSpec,
    fixed_batch_size,
    input_specs,
    output_names,
)

# Batch sizes that are tried where a model does not run, besides those that its outputs state.
_TRIED_SIZES = (1, 2, 4, 8, 16, 32)


class WholeNetwork:
    """A model that runs on samples.

    Attributes:
        runtime: where it runs.
        model: the model.
        samples: the samples.
        name: what to call the model in errors.
        fixed_size: how many samples it insists on; None where it takes any number.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: onnx.ModelProto,
        samples: SampleReader,
        name: str,
        inputs: Sequence[InputSpec] | None,
    ) -> None:
        """Make no session yet.

        Args:
            runtime: where to run.
            model: any model that takes the samples' inputs, under whatever names.
            samples: the samples.
            name: what to call the model in errors.
            inputs: the model's inputs, in the order of the samples'; None: in its own order.
        """
        self.runtime, self.model, self.samples, self.name = runtime, model, samples, name
        # Which axis of an input the samples lie on is known better from the samples.
        specs = zip(inputs or input_specs(model), samples.inputs, strict=True)
        self._inputs = [replace(mine, axis=given.axis) for mine, given in specs]
        self._outputs = output_names(model)
        self.fixed_size = fixed_batch_size(self._inputs)
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, samples: NDArray[np.intp]) -> dict[str, NDArray[np.generic] | None]:
        """Run the model once; return its outputs, None for one that is no tensor of numbers.

        Raises:
            OutOfMemoryError: the run does not fit into memory.
            ModelError: ONNX Runtime cannot run the model for any other reason.
        """
        stacked = self.samples.take(samples)
        try:
            return self._run(stacked)
        except FskdError:  # of where the samples are kept
            raise
        except Exception as error:
            if is_out_of_memory(error):  # no fault of the network
                what = f"{self.name}: a run does not fit into memory"
                raise OutOfMemoryError(what, self.name) from error
            # ONNX Runtime raises a dozen unrelated types; which one says nothing to a user.
            size, what = len(samples), first_line(self._error_as_written(stacked) or error)
            other = self._size_that_runs(size, samples[:1])
            if other is None:
                raise ModelError(f"{self.name}: ONNX Runtime cannot run it: {what}") from error
            raise ModelError(
                f"{self.name}: ONNX Runtime runs it on batches of {other} and not of {size} "
                f"({what}); give --batch-size {other}"
            ) from error

    def _run(
        self, stacked: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic] | None]:
        if self._session is None:
            self._session = self.runtime.session(self.model)
        pairs = zip(self._inputs, stacked.values(), strict=True)
        feeds = {spec.name: spec.joined(array) for spec, array in pairs}
        device = self.runtime.device
        results = run(self._session, upload(feeds, device), self._outputs, device)
        return {output: _numbers(value) for output, value in results.items()}

    def _error_as_written(self, stacked: Mapping[str, NDArray[np.generic]]) -> Exception | None:
        """Return the error of a run that failed as one about a node of the file, None without."""
        if self._session is None and self.runtime.as_written:
            return None
        plain = replace(self.runtime, as_written=True)
        network = WholeNetwork(plain, self.model, self.samples, self.name, self._inputs)
        try:
            network._run(stacked)
        except Exception as error:
            return error
        return None

    def _size_that_runs(self, size: int, sample: NDArray[np.intp]) -> int | None:
        """Return how many samples a model runs on that does not run on so many; None without."""
        if self._session is None or self.fixed_size is not None:
            return None
        stated = [
            value.type.tensor_type.shape.dim[0].dim_value
            for value in self.model.graph.output
            if value.type.tensor_type.shape.dim
        ]
        one = self.samples.take(sample)
        for other in dict.fromkeys([*stated, *_TRIED_SIZES]):
            if other in (0, size) or other > max(_TRIED_SIZES):
                continue
            try:
                self._run({name: np.repeat(array, other, axis=0) for name, array in one.items()})
            except Exception:
                continue
            return int(other)
        return None

    def on_cpu(self) -> WholeNetwork | None:
        """Return the model on the CPU, where it runs elsewhere and there are kernels for it here.

        The CPU says what a GPU does not: that one reads whatever lies behind a table for a token
        that is not in it. Nor does the CPU try out kernels for every new size of a batch.

        Raises:
            OutOfMemoryError: there is no room for it.
        """
        if self.runtime.device == "cpu":
            return None
        runtime = self.runtime.on_cpu
        host = WholeNetwork(runtime, self.model, self.samples, self.name, self._inputs)
        try:
            host._session = runtime.session(self.model)
        except Exception as error:  # of a dozen unrelated types
            if is_out_of_memory(error):
                what = f"{self.name}: it does not fit into memory"
                raise OutOfMemoryError(what, self.name) from error
            return None
        return host


def _numbers(value: OrtValue) -> NDArray[np.generic] | None:
    return download(value) if is_plain(value) else None

"""Whole models on samples: every output, sample by sample.

Where the samples lie in an output is found from the first batch and a second run of some of its
samples (``fskd_onnx.runtime.sample_axis``). An output that does not differ between samples, or
whose rows depend on the data, is left out by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.errors import FskdError, ModelError, OutOfMemoryError
from fskd_onnx.runtime.out_of_memory import is_out_of_memory
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, Runs, SampleAxis
from fskd_onnx.runtime.session_run import first_line, run
from fskd_onnx.runtime.tensor_store import download, is_plain, upload
from fskd_onnx.samples.batches import default_batch_size, plan_batches
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import (
    InputSpec,
    fixed_batch_size,
    input_specs,
    output_names,
)

Outputs = list[NDArray[np.generic]]

# Operators whose results have as many rows as the data says.
_ROWS_FROM_DATA = frozenset({"NonMaxSuppression", "Unique", "Compress", "NonZero"})
# NonZero is a part of how exporters write down shapes that are no data.
_ALWAYS_FROM_DATA = _ROWS_FROM_DATA - {"NonZero"}
# Squared difference of an output on a device from that on the CPU, relative to its square: far more
# than rounding makes, and than rows that swap their places where two scores are nearly the same.
_MOST_ON_DEVICE = 0.25
# Batch sizes that are tried where a model does not run, besides those that its outputs state.
_TRIED_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ForwardResult:
    """Outputs of a model for some samples.

    Attributes:
        values: by name, (samples, ...); the rows of a sample are on the second axis where it has
            several.
        axes: where the samples lie in each of these.
        left_out: why other outputs are left out, by name.
    """

    values: dict[str, NDArray[np.generic]]
    axes: dict[str, SampleAxis]
    left_out: dict[str, str]


def forward(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: SampleReader,
    indices: NDArray[np.intp],
    batch_size: int | None,
    name: str,
    inputs: Sequence[InputSpec] | None = None,
    axes: Mapping[str, SampleAxis] | None = None,
) -> ForwardResult:
    """Run a whole model on some samples.

    Args:
        runtime: where.
        model: any model that takes the samples' inputs, under whatever names.
        samples: the samples.
        indices: which of them.
        batch_size: samples of every run, padded; None chooses by the size of the inputs. A size
            that the model states counts before both.
        name: what to call the model in errors.
        inputs: the model's inputs, in the order of the samples'; None: in its own order.
        axes: the outputs to return and where the samples lie in them; None finds that out.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or an output mixes samples.
    """
    network = _Network(runtime, model, samples, name, inputs)
    fixed = network.fixed_size or batch_size
    batches = plan_batches([indices], default_batch_size(samples.shapes), fixed)
    found: dict[str, FoundAxis] = dict(axes or {})
    parts: dict[str, Outputs] = {}
    for batch in batches:
        values = network.run(batch.samples)
        if axes is None and not parts:
            found = network.find_axes(batch.samples, values, indices, fixed is not None)
            parts = {output: [] for output in found}
        for output, axis in found.items():
            value = values[output]
            if isinstance(axis, SampleAxis) and value is not None:
                by_sample = axis.by_sample(value)
                earlier = parts.setdefault(output, [])
                if len(by_sample) == len(batch.samples) and all(
                    part.shape[1:] == by_sample.shape[1:] for part in earlier[:1]
                ):
                    earlier.append(by_sample[: batch.count])
                else:
                    found[output] = Failing.ROWS_FROM_DATA
    left_out = {
        o: network.reason(o, axis) for o, axis in found.items() if isinstance(axis, Failing)
    }
    if axes is not None and left_out:
        output, reason = next(iter(left_out.items()))
        raise ModelError(f"{name}: output '{output}': {reason}; cut the network in front of it")
    kept = {output: axis for output, axis in found.items() if isinstance(axis, SampleAxis)}
    joined = {output: np.concatenate(parts[output]) for output in kept}
    return ForwardResult(joined, kept, left_out)


def common_outputs(
    results: tuple[ForwardResult, ForwardResult], names: Sequence[tuple[str, str]], teacher: str
) -> tuple[list[tuple[str, str]], tuple[tuple[str, str], ...]]:
    """Return the outputs that a student can be compared with its teacher by.

    Args:
        results: of teacher and student.
        names: the names of each output in both.
        teacher: what to call the teacher in an error.

    Returns:
        The names of these outputs in both networks, and for the others the teacher's name and why
        they are left out.

    Raises:
        ModelError: there is none.
    """
    left_out = {
        one: results[0].left_out.get(one) or results[1].left_out.get(other) for one, other in names
    }
    compared = [(one, other) for one, other in names if left_out[one] is None]
    reasons = tuple((output, reason) for output, reason in left_out.items() if reason is not None)
    if not compared:
        listed = "; ".join(f"'{output}': {reason}" for output, reason in reasons)
        raise ModelError(
            f"{teacher}: no output can be compared sample by sample ({listed}); "
            "cut both networks in front of it"
        )
    return compared, reasons


class _Network:
    """A model that runs on samples."""

    def __init__(
        self,
        runtime: Runtime,
        model: onnx.ModelProto,
        samples: SampleReader,
        name: str,
        inputs: Sequence[InputSpec] | None,
    ) -> None:
        self._runtime, self._model, self._samples, self._name = runtime, model, samples, name
        # Which axis of an input the samples lie on is known better from the samples.
        specs = zip(inputs or input_specs(model), samples.inputs, strict=True)
        self._inputs = [replace(mine, axis=given.axis) for mine, given in specs]
        self._outputs = output_names(model)
        self.fixed_size = fixed_batch_size(self._inputs)
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, samples: NDArray[np.intp]) -> dict[str, NDArray[np.generic] | None]:
        """Run the model once; return its outputs, None for one that is no tensor of numbers."""
        stacked = self._samples.take(samples)
        try:
            return self._run(stacked)
        except FskdError:  # of where the samples are kept
            raise
        except Exception as error:
            if is_out_of_memory(error):  # no fault of the network
                what = f"{self._name}: a run does not fit into memory"
                raise OutOfMemoryError(what, self._name) from error
            # ONNX Runtime raises a dozen unrelated types; which one says nothing to a user.
            size, what = len(samples), first_line(self._error_as_written(stacked) or error)
            other = self._size_that_runs(size, samples[:1])
            if other is None:
                raise ModelError(f"{self._name}: ONNX Runtime cannot run it: {what}") from error
            raise ModelError(
                f"{self._name}: ONNX Runtime runs it on batches of {other} and not of {size} "
                f"({what}); give --batch-size {other}"
            ) from error

    def _run(
        self, stacked: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic] | None]:
        if self._session is None:
            self._session = self._runtime.session(self._model)
        pairs = zip(self._inputs, stacked.values(), strict=True)
        feeds = {spec.name: spec.joined(array) for spec, array in pairs}
        device = self._runtime.device
        results = run(self._session, upload(feeds, device), self._outputs, device)
        return {output: _numbers(value) for output, value in results.items()}

    def _error_as_written(self, stacked: Mapping[str, NDArray[np.generic]]) -> Exception | None:
        """Return the error of a run that failed as one about a node of the file, None without."""
        if self._session is None and self._runtime.as_written:
            return None
        plain = replace(self._runtime, as_written=True)
        network = _Network(plain, self._model, self._samples, self._name, self._inputs)
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
            for value in self._model.graph.output
            if value.type.tensor_type.shape.dim
        ]
        one = self._samples.take(sample)
        for other in dict.fromkeys([*stated, *_TRIED_SIZES]):
            if other in (0, size) or other > max(_TRIED_SIZES):
                continue
            try:
                self._run({name: np.repeat(array, other, axis=0) for name, array in one.items()})
            except Exception:
                continue
            return int(other)
        return None

    def find_axes(
        self,
        first: NDArray[np.intp],
        values: Mapping[str, NDArray[np.generic] | None],
        indices: NDArray[np.intp],
        fixed: bool,
    ) -> dict[str, FoundAxis]:
        """Find where the samples lie in each output, by a second run.

        Args:
            first: samples of the first run.
            values: its outputs.
            indices: samples of which the second run may take more.
            fixed: whether it has to have as many as the first.

        Raises:
            ModelError: an output mixes samples.
        """
        others = [sample for sample in indices.tolist() if sample not in first][:1]
        stacked = self._samples.take(np.array([*first.tolist(), *others], dtype=np.intp))
        inputs = [stacked[spec.name] for spec in self._samples.inputs if spec.axis is not None]
        operators = {node.op_type for node in self._model.graph.node}
        runs = Runs.plan(first.tolist(), others, inputs, fixed, operators)
        second = np.array(runs.second, dtype=np.intp)
        host = self._on_cpu()
        again = (host or self).run(second)
        found = self._compare(runs, values, again)
        if host is not None and not all(runs.tells(axis) for axis in found.values()):
            on_device = self.run(second)
            found = self._compare(runs, values, on_device)
            self._check_device(on_device, again, found)
        for output, axis in found.items():
            one = values[output]
            if axis is Failing.MIXED and one is not None:
                what = f"does not keep samples apart (shape {list(one.shape)} of {len(first)})"
                raise ModelError(
                    f"{self._name}: its output '{output}' "
                    f"{what if one.ndim else 'is one number for all samples'}; take it out of the "
                    "graph's outputs, or give --batch-size 1 if samples may run one by one"
                )
        return found

    def _compare(
        self,
        runs: Runs,
        values: Mapping[str, NDArray[np.generic] | None],
        again: Mapping[str, NDArray[np.generic] | None],
    ) -> dict[str, FoundAxis]:
        """Return where the samples lie in each output, by two runs."""
        found: dict[str, FoundAxis] = {}
        for output, one in values.items():
            other = again[output]
            if one is None or other is None:
                found[output] = Failing.NO_NUMBERS
            elif self._has_rows_from_data(output):
                found[output] = Failing.ROWS_FROM_DATA
            else:
                found[output] = runs.compare(one, other)
        return found

    def _on_cpu(self) -> _Network | None:
        """Return the model on the CPU, where it runs elsewhere and there are kernels for it here.

        The CPU says what a GPU does not: that one reads whatever lies behind a table for a token
        that is not in it. Nor does the CPU try out kernels for every new size of a batch.
        """
        if self._runtime.device == "cpu":
            return None
        runtime = self._runtime.on_cpu
        host = _Network(runtime, self._model, self._samples, self._name, self._inputs)
        try:
            host._session = runtime.session(self._model)
        except Exception as error:  # of a dozen unrelated types
            if is_out_of_memory(error):
                what = f"{self._name}: it does not fit into memory"
                raise OutOfMemoryError(what, self._name) from error
            return None
        return host

    def _check_device(
        self,
        on_device: Mapping[str, NDArray[np.generic] | None],
        on_cpu: Mapping[str, NDArray[np.generic] | None],
        found: Mapping[str, FoundAxis],
    ) -> None:
        """Compare a run on a device with the same run on the CPU.

        Raises:
            ModelError: an output that holds samples is another one.
        """
        for output, axis in found.items():
            one, other = on_device[output], on_cpu[output]
            if not isinstance(axis, SampleAxis) or one is None or other is None:
                continue
            if one.dtype.kind not in "fV":  # classes and indices jump where scores are alike
                continue
            if one.shape != other.shape or _difference(one, other) > _MOST_ON_DEVICE:
                raise ModelError(
                    f"{self._name}: its output '{output}' is not the same on "
                    f"{self._runtime.providers[0]} and on the CPU; give --providers cpu"
                )

    def _has_rows_from_data(self, output: str) -> bool:
        """Whether an operator may give the output another number of rows each time."""
        declared = next(value for value in self._model.graph.output if value.name == output)
        dims = list(declared.type.tensor_type.shape.dim)
        # The first axis may count samples, where they may be of any number.
        stated = [dim.dim_value > 0 for dim in dims[int(self.fixed_size is None) :]]
        sized = declared.type.tensor_type.HasField("shape") and all(stated)
        return not sized and self._operator(output, _ALWAYS_FROM_DATA) is not None

    def _operator(self, output: str, operators: frozenset[str]) -> onnx.NodeProto | None:
        """Return the nearest node of some operators that an output depends on."""
        makers: dict[str, onnx.NodeProto] = {
            name: node for node in self._model.graph.node for name in node.output
        }
        pending, seen = [output], {output}
        for name in pending:
            node = makers.get(name)
            if node is None:
                continue
            if node.op_type in operators:
                return node
            pending += [read for read in node.input if read not in seen]
            seen.update(node.input)
        return None

    def reason(self, output: str, why: Failing) -> str:
        """Return why an output is left out, the operator that makes it so included."""
        if why is not Failing.ROWS_FROM_DATA:
            return str(why.value)
        node = self._operator(output, _ROWS_FROM_DATA)
        if node is None:
            return str(why.value)
        return f"{why.value} ({node.op_type}{f' {node.name!r}' if node.name else ''})"


def _difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return ||one - other||^2 / ||other||^2; what is not finite counts as 0."""
    a, b = (
        np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) for x in (one, other)
    )
    return float(np.sum((a - b) ** 2)) / (float(np.sum(b**2)) or 1.0)


def _numbers(value: OrtValue) -> NDArray[np.generic] | None:
    return download(value) if is_plain(value) else None

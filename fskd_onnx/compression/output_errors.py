"""What changes inside of a network do to its outputs.

The network runs once, from one place of change to the next; behind each it runs on as each change
has it, so nothing in front of a change runs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnxruntime import OrtValue

from fskd_onnx.errors import ModelError
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.output_scales import Scales
from fskd_onnx.passes.analysis.output_parts import parts_of
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import SampleAxis
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_axes import find_axes
from fskd_onnx.runtime.tensor_store import download
from fskd_onnx.samples.batches import Batch


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a network.

    Attributes:
        name: of the change.
        behind: name of the tensor that all which changes depends on.
        rewrite: makes the change in a graph of the network.
    """

    name: str
    behind: str
    rewrite: Callable[[gs.Graph], object]


def output_errors(
    runtime: Runtime,
    graph: Callable[[], gs.Graph],
    changes: Sequence[Change],
    samples: DecodedSamples,
    batches: Sequence[Batch],
) -> dict[Change, float]:
    """Return the relative error of the outputs under each change.

    The error of a part of an output (``fskd_onnx.passes.analysis.output_parts``) is relative to how
    much it varies over the samples; that of several, the mean of theirs. Parts that do not vary, or
    hold no samples, do not count.

    Args:
        runtime: where to run.
        graph: gives a fresh graph of the network.
        changes: their places in a topological order of the network.
        samples: inputs of the network.
        batches: the samples to run, and which of them together.

    Returns:
        Numbers of 0 and more; no number, or infinite, where an output overflows.

    Raises:
        ModelError: no output holds samples.
    """
    network = graph()
    names = [part.name for output in network.outputs for part in parts_of(output) if part.inputs]
    axes = find_axes(runtime, network, samples, batches, names)
    names = [name for name in dict.fromkeys(names) if isinstance(axes[name], SampleAxis)]
    if not names:
        raise ModelError(
            f"{network.name}: no output holds samples, so nothing tells what matters to it"
        )
    places = list(dict.fromkeys(change.behind for change in changes))
    runner = SegmentRunner(
        runtime, network, [*([place] for place in places), names], batches, samples
    )
    found: dict[Change, float] = {}
    target: _Target | None = None
    for number, place in enumerate(places):
        text = f"sensitivity, place {number + 1} of {len(places)}"
        with runner.next_stage(text) as stage:
            if target is None:
                target = _Target(_parts(stage.last_tensors(network), names, batches))
            for change in changes:
                if change.behind == place:
                    changed = graph()
                    change.rewrite(changed)
                    outputs = _parts(stage.last_tensors(changed), names, batches)
                    found[change] = target.error(outputs)
    return found


def _parts(
    outputs: Iterable[Mapping[str, OrtValue]], names: Sequence[str], batches: Sequence[Batch]
) -> Iterator[list[Array]]:
    """Yield outputs of each batch, without its padding."""
    for values, batch in zip(outputs, batches, strict=True):
        yield [download(values[name])[: batch.count] for name in names]


class _Target:
    """Outputs of the network as it is, on the samples on which each is finite."""

    def __init__(self, parts: Iterable[list[Array]]) -> None:
        self._parts = list(parts)
        self._finite = [
            [np.isfinite(own).all(axis=tuple(range(1, own.ndim))) for own in part]
            for part in self._parts
        ]
        self._scales = [self._scale(number) for number in range(len(self._parts[0]))]

    def _scale(self, number: int) -> Scales | None:
        """Return how much an output varies over the samples; None where it does not."""
        pairs = zip(self._parts, self._finite, strict=True)
        values = np.concatenate([part[number][finite[number]] for part, finite in pairs])
        scales = Scales.of(values) if len(values) else None
        return scales if scales is not None and scales.varies.any() else None

    def error(self, outputs: Iterable[list[Array]]) -> float:
        """Return the relative error of the outputs of all batches."""
        counted = [at for at, scales in enumerate(self._scales) if scales is not None]
        errors = np.zeros(len(self._scales))
        for part, right, finite in zip(outputs, self._parts, self._finite, strict=True):
            for at in counted:
                some, scales = finite[at], self._scales[at]
                assert scales is not None
                errors[at] += scales.errors(right[at][some], part[at][some])[0]
        return float(np.mean(errors[counted])) if counted else 0.0

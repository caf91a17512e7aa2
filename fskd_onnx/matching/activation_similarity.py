"""How alike activations of two networks are, on a few samples: linear CKA.

Centred kernel alignment of X and Y, (columns of) activations of the same positions of the same
samples, does not depend on the order, the number or the scale of channels (Kornblith et al. 2019,
"Similarity of Neural Network Representations Revisited", equation 3 with linear kernels)::

    CKA = ||Y X'||^2 / (||X X'|| ||Y Y'||)        X, Y centred, Frobenius norms
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.linalg.moments import Moments, sum_moments
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.runtime.column_sampling import Gatherer
from fskd_onnx.runtime.feeds import read_lazily
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.sources import SampleReader

_SAMPLES = 32
_POSITIONS = 64


class ActivationSimilarity:
    """Compares block outputs of a student with a teacher's; runs each network once per call."""

    def __init__(
        self,
        runtime: Runtime,
        teacher: gs.Graph,
        student: gs.Graph,
        samples: SampleReader,
        batches: Sequence[Batch],
    ) -> None:
        """Plan; nothing is read or run yet.

        Args:
            runtime: where to run.
            teacher: the original network, canonical.
            student: the compressed network, canonical.
            samples: the samples, named as the teacher's inputs are.
            batches: of samples, of which the first few are taken.
        """
        self._runtime = runtime
        self._graphs = student, teacher
        self._samples = samples
        ends = np.cumsum([batch.count for batch in batches])
        self._batches = list(batches[: int(np.searchsorted(ends, _SAMPLES)) + 1])
        self._gather = Gatherer(runtime)
        views = (view for graph in self._graphs for view in find_linear(graph))
        linears = [view for view in views if isinstance(view, Linear)]
        self._last = {v.output.name: v.channels_last for v in linears}

    def __call__(self, asked: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        """Compare block outputs.

        Args:
            asked: for some of the student's, the teacher's in question.

        Returns:
            0..1 for each two; 0 where their positions differ.
        """
        of_teacher = list(dict.fromkeys(name for names in asked.values() for name in names))
        found: dict[tuple[str, str], list[tuple[Moments, Moments]]] = {
            (mine, theirs): [] for mine, names in asked.items() for theirs in names
        }
        for student, teacher in zip(*self._run([list(asked), of_teacher]), strict=True):
            for (mine, theirs), sums in found.items():
                x, y = student[mine], teacher[theirs]
                if x.shape[-1] == y.shape[-1]:
                    sums.append((Moments.of(x, y), Moments.of(y, y)))
        return {
            pair: linear_cka(*map(sum_moments, zip(*sums, strict=True))) if sums else 0.0
            for pair, sums in found.items()
        }

    def _run(
        self, wanted: Sequence[Sequence[str]]
    ) -> list[Iterable[dict[str, NDArray[np.floating]]]]:
        """Run both networks; give columns of the wanted tensors, batch after batch."""
        results: list[Iterable[dict[str, NDArray[np.floating]]]] = []
        with TensorStore() as store:
            feeds = read_lazily(self._samples, self._batches, store, self._runtime.device)
            for graph, names in zip(self._graphs, wanted, strict=True):
                inputs = [tensor.name for tensor in graph.inputs]
                own = [dict(zip(inputs, feed.values(), strict=True)) for feed in feeds]
                network = SegmentRunner(self._runtime, graph, [names], self._batches, own, store)
                network.enter("how alike blocks are")
                results.append(
                    [
                        {
                            name: self._columns(name, tensor, batch)
                            for name, tensor in network.tensors_once(number).items()
                        }
                        for number, batch in enumerate(self._batches)
                    ]
                )
                network.leave()
        return results

    def _columns(self, name: str, tensor: OrtValue, batch: Batch) -> NDArray[np.floating]:
        """Gather some positions, evenly spread, as (1, channels, columns)."""
        last, shape = self._last[name], tensor.shape()
        positions = math.prod(shape[1:-1] if last else shape[2:])
        chosen = np.unique(np.linspace(0, positions - 1, _POSITIONS).astype(np.intp))
        count = shape[0] * batch.count // len(batch.samples)
        return self._gather(tensor, last, count, chosen[np.newaxis])[np.newaxis]


def linear_cka(across: Moments, within: Moments) -> float:
    """Return the linear CKA of x and y.

    Args:
        across: moments of x as regressors and y as targets, in one group.
        within: of y as both.
    """
    norms = [
        float(np.linalg.norm(part))
        for part in (across.centered_cross, across.centered_gram, within.centered_gram)
    ]
    return norms[0] ** 2 / (norms[1] * norms[2]) if norms[1] * norms[2] > 0 else 0.0

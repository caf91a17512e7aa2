"""How alike activations of two networks are, on a few samples: linear CKA.

Centred kernel alignment of X and Y, (columns of) activations of the same positions of the same
samples, does not depend on the order, the number or the scale of channels (Kornblith et al. 2019,
"Similarity of Neural Network Representations Revisited", equation 3 with linear kernels)::

    CKA = ||Y X'||^2 / (||X X'|| ||Y Y'||)        X, Y centred, Frobenius norms
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.linalg.moments import Moments, finite_columns, sum_moments
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.runtime.collector import ColumnRequest, collect
from fskd_onnx.runtime.column_sampling import EvenSampling
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.samples.batches import Batch, first_batches

_SAMPLES = 32
_POSITIONS = 64


class ActivationSimilarity:
    """Compares block outputs of a student with a teacher's; runs each network once per call."""

    def __init__(
        self,
        runtime: Runtime,
        teacher: gs.Graph,
        student: gs.Graph,
        samples: DecodedSamples,
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
        self._batches = first_batches(batches, _SAMPLES)
        self._gather = Gatherer(runtime)
        views = (view for graph in self._graphs for view in find_linear(graph))
        linears = [view for view in views if isinstance(view, Linear)]
        self._last = {v.output.name: v.columns_last for v in linears}

    def __call__(self, asked: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        """Compare block outputs.

        Args:
            asked: for some of the student's, the teacher's in question.

        Returns:
            0..1 for each two; 0 where their positions differ, where they hold no samples, or where
            no column is finite in both.
        """
        of_teacher = list(dict.fromkeys(name for names in asked.values() for name in names))
        found: dict[tuple[str, str], list[tuple[Moments, Moments]]] = {
            (mine, theirs): [] for mine, names in asked.items() for theirs in names
        }
        for batch in zip(*self._run([list(asked), of_teacher]), strict=True):
            student, teacher = (
                dict(zip(names, columns, strict=True))
                for names, columns in zip((asked, of_teacher), batch, strict=True)
            )
            for (mine, theirs), sums in found.items():
                x, y = student[mine], teacher[theirs]
                if x is None or y is None or x.shape[-1] != y.shape[-1]:
                    continue
                finite = finite_columns(x, y)
                if finite is not None:
                    x, y = x[..., finite], y[..., finite]
                if x.shape[-1]:
                    sums.append((Moments.of(x, y), Moments.of(y, y)))
        return {
            pair: linear_cka(*map(sum_moments, zip(*sums, strict=True))) if sums else 0.0
            for pair, sums in found.items()
        }

    def _run(self, names: Sequence[Sequence[str]]) -> list[list[list[NDArray[np.floating] | None]]]:
        """Run both networks; return (1, channels, columns) per network, batch and tensor.

        None for a tensor that does not hold samples.
        """
        results = []
        for graph, tensors in zip(self._graphs, names, strict=True):
            last = [name for name in tensors if self._last[name]]
            runner = SegmentRunner(
                self._runtime, graph, [tensors], self._batches, self._samples, last
            )
            requests = [
                ColumnRequest((name,), self._last[name], EvenSampling(_POSITIONS))
                for name in tensors
            ]
            with runner.next_stage("how alike blocks are") as stage:
                results.append(
                    [
                        [None if part is None else part.values[0][np.newaxis] for part in found]
                        for _, found in collect(stage, self._batches, requests, self._gather)
                    ]
                )
        return results


def linear_cka(across: Moments, within: Moments) -> float:
    """Return the linear CKA of x and y; 0 where one of them does not vary, or sums overflow.

    Args:
        across: moments of x as regressors and y as targets, in one group.
        within: of y as both.
    """
    norms = [
        float(np.linalg.norm(part))
        for part in (across.centered_cross, across.centered_gram, within.centered_gram)
    ]
    scale = norms[1] * norms[2]
    return norms[0] ** 2 / scale if 0 < scale < math.inf else 0.0

"""How far each block output of a student is from its teacher's, the student running as it is.

Both networks run over the same samples, batch by batch, and their block outputs are compared at
the same positions: of a block with channels c(i) in the teacher, over all columns that are looked
at::

    sum ||student_i - teacher_c(i)||^2 / sum ||teacher_c(i) - mean||^2

Blocks are paired as a fit pairs them. An error holds all that came in through a block's input, so
the first blocks with large errors are where a student departs from its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compare_results import BlockError
from fskd_onnx.fitting.adapters import families_of, fit_factors_too
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.matching.activation_similarity import ActivationSimilarity
from fskd_onnx.matching.channels import match_channels
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import pair_blocks
from fskd_onnx.matching.sample_axes import leave_without_samples
from fskd_onnx.options import AdapterName, RunOptions
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.divided_samples import common_batch_size
from fskd_onnx.pipeline.networks import Networks, compose_decomposed
from fskd_onnx.results import BlockPair, Matching
from fskd_onnx.runtime.collector import ColumnRequest, Columns, collect
from fskd_onnx.runtime.column_sampling import RandomSampling
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch, default_batch_size, plan_batches
from fskd_onnx.samples.reader import Samples

_OPEN = (
    "which of the teacher's channels it has is not to be seen from its weights; give --map with "
    "the JSON report of its fit, or with what 'match --json' saves with samples"
)
_POSITIONS = "it has other positions than its teacher's"
_NOT_FINITE = "its output, or its teacher's, is not finite"


def block_errors(
    networks: Networks,
    loaded: Samples,
    runtime: Runtime,
    run: RunOptions,
    block_map: str | None = None,
) -> tuple[BlockError, ...]:
    """Return how far each linear node of a student is from its counterpart, in their order.

    Args:
        networks: teacher and student.
        loaded: samples for both.
        runtime: where to run.
        run: how to read and run.
        block_map: file of pairs that are known, see ``fskd_onnx.matching.map_file``.

    Raises:
        FskdError: a file cannot be used, or a network cannot run.
    """
    size, fixed = (
        default_batch_size(loaded.shapes),
        common_batch_size([n.inputs for n in networks], loaded),
    )
    everything = np.arange(len(loaded), dtype=np.intp)
    batches = plan_batches([everything], size, fixed or run.batch_size)
    with TensorStore(run.memory_limit) as store:
        samples = DecodedSamples(loaded, batches, store, runtime.device)
        networks, matching = _match(networks, runtime, samples, batches, block_map)
        graphs = networks[0].graph(), networks[1].graph()
        return compare_blocks(graphs, matching, runtime, samples, batches, run.seed)


def compare_blocks(
    graphs: tuple[gs.Graph, gs.Graph],
    matching: Matching,
    runtime: Runtime,
    samples: DecodedSamples,
    batches: Sequence[Batch],
    seed: int,
) -> tuple[BlockError, ...]:
    """Return how far each linear node of a student is from its counterpart.

    Args:
        graphs: teacher and student, canonical.
        matching: pairs of blocks and channels.
        runtime: where to run.
        samples: for both.
        batches: those to run on.
        seed: of the columns that are looked at.

    Returns:
        One for each pair of the matching, in its order.
    """
    return _Comparison(graphs, matching, seed).run(runtime, samples, batches)


def _match(
    networks: Networks,
    runtime: Runtime,
    samples: DecodedSamples,
    batches: Sequence[Batch],
    block_map: str | None,
) -> tuple[Networks, Matching]:
    """Pair blocks and channels as a fit does; blocks of several nodes become one node each."""
    graphs = networks[0].graph(), networks[1].graph()
    known = {} if block_map is None else read_map(block_map, *graphs, networks[1].parts)
    similarity = ActivationSimilarity(runtime, *graphs, samples, batches)
    partners = pair_blocks(*graphs, given=known, similarity=similarity)
    partners = leave_without_samples(partners, graphs, runtime, samples, batches)
    if fit_factors_too(families_of(AdapterName.AUTO)):
        networks = compose_decomposed(networks, partners)
    graphs = networks[0].graph(), networks[1].graph()
    return networks, networks[1].tell_of_parts(match_channels(*graphs, partners))


@dataclass
class _Sums:
    """Sums over the columns of a block.

    Attributes:
        pair: the block.
        requests: what is collected of teacher and student.
        error: sum of ||student - teacher||^2.
        squares: sum of ||teacher||^2, of the block's channels.
        totals: (channels,) sums of the teacher's.
        count: number of columns.
        reason: why it cannot be measured; empty where it can.
    """

    pair: BlockPair
    requests: tuple[ColumnRequest, ColumnRequest]
    error: float = 0.0
    squares: float = 0.0
    totals: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    count: int = 0
    reason: str = ""

    def add(self, teacher: Columns | None, student: Columns | None) -> None:
        """Add the columns of a batch."""
        if self.reason or teacher is None or student is None:
            return
        shapes = [
            (found.shape[0], found.count, request.positions(found.shape))
            for found, request in zip((teacher, student), self.requests, strict=True)
        ]
        if shapes[0] != shapes[1]:
            self.reason = _POSITIONS
            return
        target = teacher.values[0][list(self.pair.channels or ())].astype(np.float64)
        own = student.values[0].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            self.error += float(np.sum((own - target) ** 2))
            self.squares += float(np.sum(target**2))
            self.totals = self.totals + target.sum(axis=1)
        self.count += target.shape[1]
        if not (math.isfinite(self.error) and math.isfinite(self.squares)):
            self.reason = _NOT_FINITE

    @property
    def relative(self) -> float:
        """The error, relative to the spread of the teacher's; to its size where it has none."""
        spread = self.squares - float(np.sum(self.totals**2)) / max(self.count, 1)
        rounding = np.finfo(np.float64).eps * self.squares
        return self.error / (spread if spread > rounding else self.squares or 1.0)


class _Comparison:
    """One run of both networks."""

    def __init__(self, graphs: tuple[gs.Graph, gs.Graph], matching: Matching, seed: int) -> None:
        self._graphs = graphs
        self._matching = matching
        teacher, student = map(_views, self._graphs)
        outputs = {view.output.name: view for view in teacher.values()}
        self._sums: dict[str, _Sums] = {}
        for number, pair in enumerate(matching.usable):
            if pair.channels is None:
                continue
            views = outputs[str(pair.teacher)], student[pair.student]
            sampling = RandomSampling.of_unknowns(1, (seed, number))
            requests = [ColumnRequest((v.output.name,), v.columns_last, sampling) for v in views]
            self._sums[pair.student] = _Sums(pair, (requests[0], requests[1]))

    def run(
        self, runtime: Runtime, samples: DecodedSamples, batches: Sequence[Batch]
    ) -> tuple[BlockError, ...]:
        """Run both networks and return what is known of each node."""
        sums = list(self._sums.values())
        if sums:
            gather = Gatherer(runtime)
            of_both = [[block.requests[which] for block in sums] for which in (0, 1)]
            runners = [
                SegmentRunner(
                    runtime,
                    graph,
                    [list(dict.fromkeys(name for r in requests for name in r.tensors))],
                    batches,
                    samples,
                )
                for graph, requests in zip(self._graphs, of_both, strict=True)
            ]
            with (
                runners[0].next_stage("blocks of the teacher") as one,
                runners[1].next_stage("blocks of both") as other,
            ):
                found = (
                    collect(stage, batches, requests, gather, parallel_map)
                    for stage, requests in zip((one, other), of_both, strict=True)
                )
                for (_, theirs), (_, own) in zip(*found, strict=True):
                    for block, target, columns in zip(sums, theirs, own, strict=True):
                        block.add(target, columns)
        return tuple(map(self._result, self._matching.pairs))

    def _result(self, pair: BlockPair) -> BlockError:
        sums = self._sums.get(pair.student)
        reason = pair.reason or (_OPEN if sums is None else sums.reason)
        if not reason and sums is not None and not sums.count:
            reason = _POSITIONS
        return BlockError(
            student=pair.student,
            teacher=pair.teacher,
            op=pair.op,
            channels=pair.channels or (),
            teacher_width=pair.teacher_width,
            error=None if reason or sums is None else sums.relative,
            reason=reason,
        )


def _views(graph: gs.Graph) -> dict[str, Linear]:
    return {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}

"""The story of ``match``: by weights and structure, else by fitting block by block."""

from __future__ import annotations

import logging

from fskd_onnx.fitting.adapters import families_of
from fskd_onnx.fitting.coordinate_descent import CoordinateDescent
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.channels import match_channels
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import pair_blocks
from fskd_onnx.option_checks import given
from fskd_onnx.options import AdapterName, FitOptions, RunOptions
from fskd_onnx.pipeline.networks import (
    Networks,
    check_order,
    compose_decomposed,
    load_networks,
)
from fskd_onnx.pipeline.problem_setup import load_inputs, prepare
from fskd_onnx.pipeline.trials import teacher_pass
from fskd_onnx.results import Matching
from fskd_onnx.runtime.out_of_memory import with_enough_memory
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource, check_sources
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)


@threads_for()
def match(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource | None = None,
    options: RunOptions | None = None,
    block_map: str | None = None,
) -> Matching:
    """Pair the blocks and channels of a student with its teacher's.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: with samples, blocks that weights and structure leave open are found from
            activations. So are channels, which means fitting block by block, since an unfitted
            student's deep activations say nothing.
        options: how to read and run.
        block_map: as ``map`` of ``FitOptions``.

    Raises:
        FskdError: a file, the samples or the machine cannot be used.
    """
    check_sources(teacher, student)
    run = given(options, "options", RunOptions)
    settings = FitOptions(run, AdapterName.POINTWISE, map=block_map)
    if samples is None:
        networks = load_networks(teacher, student)
        graphs = networks[0].graph(), networks[1].graph()
        known = settings.map
        pairs = {} if known is None else read_map(known, *graphs, networks[1].parts)
        partners = pair_blocks(*graphs, pairs)
        check_order(networks, partners)
        one, other = compose_decomposed(networks, partners)
        return other.tell_of_parts(match_channels(one.graph(), other.graph(), partners))
    inputs = load_inputs(teacher, student, samples, settings.run)
    return with_enough_memory(lambda: _match(*inputs, settings), settings.run.batch_size)


def _match(networks: Networks, samples: Samples, settings: FitOptions) -> Matching:
    """Pair blocks and channels with samples, see `match`."""
    with TensorStore(settings.run.memory_limit) as store:
        problem = prepare(networks, samples, settings, store)
        if all(pair.channels is not None for pair in problem.matching.usable):
            return problem.matching
        # Whole networks first: what ONNX Runtime cannot run fails here, by its name.
        logger.info("untouched student: relative error %.4g", problem.before.relative_mse)
        descent = CoordinateDescent(
            problem.student.graph,
            problem.matching,
            teacher_pass(problem, problem.splits.final, settings),
            families_of(settings.adapter),
            settings.solver,
            StageTimer(),
            problem.match_again,
        )
        return descent.run().matching

"""The story of a match, on one page."""

from __future__ import annotations

from fskd_onnx.fitting.coordinate_descent import CoordinateDescent
from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.fit import logger
from fskd_onnx.pipeline.problem import LoadedModel, prepare
from fskd_onnx.pipeline.trials import teacher_pass
from fskd_onnx.results import Matching
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource
from fskd_onnx.timing import StageTimer


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
    if samples is None:
        graphs = LoadedModel.load(teacher).graph(), LoadedModel.load(student).graph()
        given = {} if block_map is None else read_map(block_map, *graphs)
        return match_models(*graphs, given)
    settings = FitOptions(options or RunOptions(), adapter="pointwise", map=block_map)
    task = prepare(teacher, student, samples, settings)
    if all(pair.channels is not None for pair in task.matching.usable):
        return task.matching
    # Whole networks first: what ONNX Runtime cannot run fails here, by its name.
    logger.info("untouched student: relative error %.4g", task.before.relative_mse)
    with teacher_pass(task, task.final, settings) as lead:
        descent = CoordinateDescent(task, settings, StageTimer(), task.matching, lead)
        descent.run()
    return descent.matching

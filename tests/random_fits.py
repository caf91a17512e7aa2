"""Fits of random graphs with known truth: ``python -m tests.random_fits --count 10000 --jobs 2``.

Each seed gives a teacher, a student whose pairs and channels are known, samples and options
(``tests/random_graphs``). What has to hold of every one is in ``LIMITS``; the counts are printed,
with the seeds that broke a limit, and the exit status is 1 if any is broken.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx

from fskd_onnx import FitResult, NoImprovementError, fit, match
from fskd_onnx.errors import FskdError
from fskd_onnx.passes import Canonicalize
from fskd_onnx.results import BlockPair, BlockReport, Evidence
from tests.helpers import assert_close, at_least, insert_and_fuse, linears, random_adapters
from tests.random_graphs.case import Case, draw
from tests.random_graphs.judging import (
    FRESH,
    Outcome,
    command,
    errors_and_faults,
    guarded,
    judge_fresh,
    normalised,
    outputs_of,
    where,
)
from tests.random_graphs.truth import Truth

LIMITS = {
    "invalid case": 0.0,
    "wrong pair": 0.0,
    "wrong channels of exact slices": 0.0,
    "traceback": 0.0,
    "fuse != explicit": 0.0,
    "untouched part changed": 0.0,
    "more parameters": 0.0,
    "key not unique": 0.0,
    "worse on fresh samples": 0.002,
}
"""Faults, and the share of the accepted fits that may show each."""


def judge(seed: int) -> Outcome:
    """Draw a case, fit it, and hold all that is reported against the truth."""
    return guarded(seed, _judge)


def _judge(outcome: Outcome) -> None:
    case = draw(outcome.seed)
    outcome.recipe = str(case.recipe)
    target = outputs_of(case.teacher.model, case, FRESH)
    before = outputs_of(case.student.model, case, FRESH, target)
    for name, values in target.items():
        assert values.shape == before.get(name, values).shape, name
        assert np.isfinite(values).all(), name
    _judge_fusing(case, outcome)
    truth = Truth(case)
    _judge_matching(case, truth, outcome)
    result = _fitted(case, truth, outcome)
    if result is None:
        return
    outcome.result = "accepted"
    _judge_untouched(case, result, outcome)
    said = result.report.before.relative_mse, result.report.after.relative_mse
    text = f"{said[0]:.4g} -> {said[1]:.4g} on {case.count} samples"
    judge_fresh(outcome, case, (case.student.model, result.model), text)


def _fitted(case: Case, truth: Truth, outcome: Outcome) -> FitResult | None:
    """Fit, and judge the pairs of the report; None where no model comes out."""
    model, student = case.teacher.model, case.student.model
    start = time.perf_counter()
    result = None
    try:
        result = fit(model, student, case.samples(), case.options)
        report = result.report
    except NoImprovementError as error:
        outcome.result, report = "refused", error.report
    except FskdError as error:
        outcome.result = f"{type(error).__name__}: {normalised(str(error))}"
        return None
    except Exception as error:
        outcome.result = "traceback"
        outcome.faults.append(("traceback", where(error)))
        return None
    finally:
        outcome.seconds = time.perf_counter() - start
    outcome.counts["findable"] += len(truth.findable)
    kept = case.options.targets == "kept"
    _judge_pairs(case, truth, outcome, report.blocks, kept)
    return result


def _judge_matching(case: Case, truth: Truth, outcome: Outcome) -> None:
    """Judge the pairs that are found without samples."""
    try:
        pairs = match(case.teacher.model, case.student.model).pairs
    except FskdError:
        return
    except Exception as error:
        outcome.faults.append(("traceback", f"match: {where(error)}"))
        return
    scratch = Outcome(case.seed)
    certain = [pair for pair in pairs if pair.evidence is not Evidence.ACTIVATIONS]
    _judge_pairs(case, truth, scratch, certain, True)
    outcome.faults += [(kind, f"match: {text}") for kind, text in scratch.faults]


def _judge_pairs(
    case: Case,
    truth: Truth,
    outcome: Outcome,
    blocks: Sequence[BlockReport | BlockPair],
    judge_channels: bool,
) -> None:
    """Count pairs and channels, right and wrong."""
    names = Counter(block.student for block in blocks)
    for name, count in names.items():
        if count > 1:
            outcome.faults.append(("key not unique", f"{count} blocks are called '{name}'"))
    for block in blocks:
        # Of a report, blocks that were kept have a reason as well, and a pair to be judged.
        if block.teacher is None or (isinstance(block, BlockPair) and block.reason):
            outcome.counts["left alone"] += 1
            continue
        found = truth.compare(block.student, block.teacher, block.channels or ())
        if found.wrong_pair:
            outcome.counts["wrong"] += 1
            outcome.faults.append(("wrong pair", found.wrong_pair))
            continue
        outcome.counts["found"] += 1
        if block.channels and judge_channels:
            kind = "exact" if case.recipe.exact else "noisy"
            outcome.counts[f"channels {kind}"] += len(block.channels)
            outcome.counts[f"wrong channels {kind}"] += found.wrong_channels
            if found.wrong_channels and case.recipe.exact:
                text = f"{found.wrong_channels} of {len(block.channels)} of {found.block}"
                outcome.faults.append(("wrong channels of exact slices", text))


def _judge_fusing(case: Case, outcome: Outcome) -> None:
    """Compare adapters behind the linear nodes with fused ones."""
    try:
        # An adapter of its own rounds once more in half precision, so that runs in single. What is
        # left of a tensor that a Relu cuts may be no more than the rounding of that; double tells.
        single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
        if not _fuses(case, at_least(case.student.model, single)):
            assert _fuses(case, at_least(case.student.model, double))
    except Exception:
        outcome.faults.append(("fuse != explicit", traceback.format_exc()[-600:]))


def _fuses(case: Case, student: onnx.ModelProto) -> bool:
    """Whether random adapters give the same outputs, fused or not."""
    adapters = random_adapters(student)
    if not adapters:
        return True
    explicit, fused = insert_and_fuse(student, adapters)
    outputs = [outputs_of(model, case, 4) for model in (fused, explicit)]
    try:
        assert_close(*outputs)
    except AssertionError:
        return False
    return True


def _judge_untouched(case: Case, result: FitResult, outcome: Outcome) -> None:
    """Check the envelope, the nodes, the bytes of what was not fitted, and the parameters."""
    student, fused = case.student.model, result.model
    canonical = Canonicalize()(student).model
    views = linears(canonical)
    fitted = [views[b.student] for b in result.report.blocks if b.status != "kept"]
    constants = [c for view in fitted for c in (view.weight, view.bias_constant)]
    changed = {constant.name for constant in constants if constant is not None}
    now = {tensor.name: tensor.SerializeToString() for tensor in fused.graph.initializer}
    touched = [
        tensor.name
        for tensor in canonical.graph.initializer
        if tensor.name not in changed and now.get(tensor.name) != tensor.SerializeToString()
    ]
    for part in ("ir_version", "opset_import", "functions", "metadata_props", "producer_name"):
        if getattr(fused, part) != getattr(student, part):
            touched.append(part)
    if fused.graph.input != student.graph.input or fused.graph.output != student.graph.output:
        touched.append("inputs or outputs")
    ops = [Counter(node.op_type for node in m.graph.node) for m in (fused, canonical)]
    unbiased = sum(view.op == "MatMul" and view.bias_constant is None for view in fitted)
    more = ops[0] - ops[1]
    if ops[1] - ops[0] or set(more) - {"Add"} or more["Add"] > unbiased:
        touched.append(f"nodes: {dict(more)} more, {dict(ops[1] - ops[0])} less")
    if touched:
        outcome.faults.append(("untouched part changed", ", ".join(touched)))
    sizes = [_parameters(model) for model in (student, fused)]
    biases = sum(view.width for view in fitted)
    if sizes[1] > sizes[0] + biases:
        outcome.faults.append(("more parameters", f"{sizes[0]} -> {sizes[1]}"))


def _parameters(model: onnx.ModelProto) -> int:
    constants = (a.t for node in model.graph.node for a in node.attribute if a.name == "value")
    return sum(math.prod(tensor.dims) for tensor in (*model.graph.initializer, *constants))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Give the counts, one a line."""
    counts = sum((outcome.counts for outcome in outcomes), Counter())
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines = [
        f"graphs {len(outcomes)}, seconds per fit {seconds / max(len(outcomes), 1):.3f}",
        f"pairs: {counts['findable']} findable, {counts['found']} found, {counts['wrong']} wrong, "
        f"{counts['left alone']} blocks without a pair, inner nodes among them",
    ]
    lines += [
        f"channels of {kind} students: {counts[f'channels {kind}']}, "
        f"{counts[f'wrong channels {kind}']} wrong"
        for kind in ("exact", "noisy")
    ]
    return "\n".join([*lines, *errors_and_faults(LIMITS, outcomes)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge many seeds, print the counts; return 1 if a limit is broken."""
    return command("tests.random_fits", __doc__, judge, LIMITS, summary, arguments)


if __name__ == "__main__":
    sys.exit(main())

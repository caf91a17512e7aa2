"""Fits of random graphs with known truth: ``python -m tests.random_fits --count 10000 --jobs 2``.

Each seed gives a teacher, a student whose pairs and channels are known, samples and options
(``tests/random_graphs``). What has to hold of every one is in ``LIMITS``; the counts are printed,
with the seeds that broke a limit, and the exit status is 1 if any is broken.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import multiprocessing
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from fskd_onnx import FitResult, NoImprovementError, fit, match
from fskd_onnx.errors import FskdError
from fskd_onnx.passes import Canonicalize
from fskd_onnx.results import BlockPair, BlockReport, Evidence
from tests.helpers import Array, assert_close, insert_and_fuse, linears, random_adapters, run
from tests.random_graphs.case import Case, draw
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
_FRESH = 204  # a multiple of all sizes of batches


@dataclass
class Outcome:
    """What became of one seed.

    Attributes:
        seed: the seed.
        recipe: how its student was made.
        result: "accepted", "refused", or the kind of an error.
        faults: kind of fault, and what was seen.
        counts: of pairs and channels.
        before: error of the student on fresh samples, where the fit was accepted.
        after: the same of the fitted student.
        seconds: of the fit.
    """

    seed: int
    recipe: str = ""
    result: str = ""
    faults: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    before: float = math.nan
    after: float = math.nan
    seconds: float = 0.0


def judge(seed: int) -> Outcome:
    """Draw a case, fit it, and hold all that is reported against the truth."""
    outcome = Outcome(seed)
    try:
        _judge(outcome)
    except Exception:
        outcome.faults.append(("invalid case", traceback.format_exc()[-600:]))
    return outcome


def _judge(outcome: Outcome) -> None:
    case = draw(outcome.seed)
    outcome.recipe = str(case.recipe)
    target = outputs_of(case.teacher.model, case, _FRESH)
    before = outputs_of(case.student.model, case, _FRESH, target)
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
    after = outputs_of(result.model, case, _FRESH, target)
    outcome.before, outcome.after = (relative_error(o, target, case) for o in (before, after))
    rounding = 1e-5 if next(iter(target.values())).dtype == np.float16 else 1e-9
    if not outcome.after <= outcome.before * 1.001 + rounding:
        said = result.report.before.relative_mse, result.report.after.relative_mse
        text = (
            f"{outcome.before:.4g} -> {outcome.after:.4g} where the report says "
            f"{said[0]:.4g} -> {said[1]:.4g} on {case.count} samples"
        )
        outcome.faults.append(("worse on fresh samples", text))


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
        outcome.result = f"{type(error).__name__}: {_normalised(str(error))}"
        return None
    except Exception as error:
        outcome.result = "traceback"
        outcome.faults.append(("traceback", _where(error)))
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
        outcome.faults.append(("traceback", f"match: {_where(error)}"))
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
        # An adapter of its own rounds once more in half precision, so that runs in single.
        student = _at_least_single(case.student.model)
        adapters = random_adapters(student)
        if not adapters:
            return
        explicit, fused = insert_and_fuse(student, adapters)
        assert_close(*(outputs_of(model, case, 4) for model in (fused, explicit)))
    except Exception:
        outcome.faults.append(("fuse != explicit", traceback.format_exc()[-600:]))


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


def _at_least_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the same network, half precision replaced by single."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.name == "value")):
        if tensor.data_type == half:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == half:
            attribute.i = single
    return copy


def outputs_of(
    model: onnx.ModelProto, case: Case, count: int, wanted: Collection[str] | None = None
) -> dict[str, Array]:
    """Run fresh samples, in batches of the size that a model insists on.

    Args:
        model: the model.
        case: gives the samples.
        count: how many.
        wanted: names of outputs; None leaves out what is the same for all samples.
    """
    feeds, axis = case.samples(count, seed=1), case.batch_axis
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = feeds[value.name].astype(kind)
    size = model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value or count
    parts = []
    for start in range(0, count - size + 1, size):
        batch = {n: v.take(range(start, start + size), axis) for n, v in feeds.items()}
        parts.append(run(model, batch))
    varying = [
        name
        for name, first in parts[0].items()
        if (name in wanted if wanted is not None else first.shape[axis] == size)
        and (wanted is not None or len(parts) == 1 or not np.array_equal(first, parts[1][name]))
    ]
    return {name: np.concatenate([part[name] for part in parts], axis) for name in varying}


def relative_error(outputs: dict[str, Array], target: dict[str, Array], case: Case) -> float:
    """Give ||outputs - target||^2 / ||target - mean||^2 over all outputs, by name."""
    error = energy = 0.0
    # Of dead channels an output may be constant as well, and left out.
    for name in target.keys() & outputs.keys():
        exact = target[name].astype(np.float64)
        error += float(np.sum((outputs[name] - exact) ** 2))
        energy += float(np.sum((exact - exact.mean(case.batch_axis, keepdims=True)) ** 2))
    return error / (energy or 1.0)


def _parameters(model: onnx.ModelProto) -> int:
    constants = (a.t for node in model.graph.node for a in node.attribute if a.name == "value")
    return sum(math.prod(tensor.dims) for tensor in (*model.graph.initializer, *constants))


def _normalised(message: str) -> str:
    """Leave names and numbers out of a message, so that equal kinds look equal."""
    message = re.sub(r"'[^']*'", "'_'", message)
    return re.sub(r"-?\d[\d.e+-]*", "#", message)[:150]


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:150]} @ {places}"


def judged(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Judge seeds, side by side where there are several jobs."""
    if jobs == 1:
        yield from map(judge, seeds)
        return
    # Unlike a pool of multiprocessing, an executor does not wait for a process that was killed.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(judge, seeds, chunksize=10)


def broken_limits(outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
    """Give the seeds of each kind of fault that is more frequent than it may be."""
    accepted = sum(outcome.result == "accepted" for outcome in outcomes)
    broken = {}
    for kind, share in LIMITS.items():
        seeds = [o.seed for o in outcomes if any(fault == kind for fault, _ in o.faults)]
        if len(seeds) > share * accepted:
            broken[kind] = seeds
    return broken


def summary(outcomes: Sequence[Outcome]) -> str:
    """Give the counts, one a line."""
    counts = sum((outcome.counts for outcome in outcomes), Counter())
    results = Counter(outcome.result or "not fitted" for outcome in outcomes)
    faults = Counter(kind for o in outcomes for kind in {fault for fault, _ in o.faults})
    gains = [
        math.log10(max(o.before, 1e-9) / max(o.after, 1e-9))
        for o in outcomes
        if o.result == "accepted" and o.before == o.before and o.after == o.after
    ]
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
    mean = sum(gains) / max(len(gains), 1)
    lines.append(f"mean gain on fresh samples: 10^{mean:.2f} over {len(gains)} accepted fits")
    lines += [f"{count:6d} {result}" for result, count in results.most_common()]
    lines.append("graphs with a fault, by kind:")
    lines += [f"{faults[kind]:6d} {kind}" for kind in LIMITS]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge many seeds, print the counts; return 1 if a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_fits", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="one seed, with all that was seen")
    parser.add_argument("--json", type=Path, help="file for the outcome of each seed")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.count)
    if options.only is not None:
        seeds = range(options.only, options.only + 1)
    outcomes = sorted(judged(seeds, options.jobs), key=lambda outcome: outcome.seed)
    if options.json:
        records = [vars(outcome) for outcome in outcomes]
        options.json.write_text(json.dumps(records), encoding="utf-8")
    print(summary(outcomes))
    for outcome in outcomes:
        for kind, text in outcome.faults:
            print(f"seed {outcome.seed}: {kind}: {text}")
    broken = broken_limits(outcomes)
    for kind, found in broken.items():
        print(f"limit broken: {kind}: seeds {', '.join(map(str, found))}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

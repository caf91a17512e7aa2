"""How random cases are judged: what is seen of each, what breaks a limit, and the command."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from tests.helpers import Array, run
from tests.random_graphs.case import Case

FRESH = 204
"""Fresh samples that a result is judged on; a multiple of all sizes of batches."""

Limits = Mapping[str, float]
"""Faults, and the share of the accepted results that may show each."""


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


Judge = Callable[[int], Outcome]
"""Draws the case of a seed, and tells what is seen of it; never raises."""


def guarded(seed: int, judge: Callable[[Outcome], None]) -> Outcome:
    """Judge a seed; what is raised is a fault of the case.

    Args:
        seed: the seed.
        judge: draws its case, and adds to an outcome what is seen of it.
    """
    outcome = Outcome(seed)
    try:
        judge(outcome)
    except Exception:
        outcome.faults.append(("invalid case", traceback.format_exc()[-600:]))
    return outcome


def judge_fresh(
    outcome: Outcome, case: Case, models: tuple[onnx.ModelProto, onnx.ModelProto], said: str
) -> None:
    """Compare a student with its fitted self on fresh samples.

    Args:
        outcome: gets both errors, and the fault.
        case: gives the teacher and samples.
        models: the student before and after.
        said: what the report says of both.
    """
    target = outputs_of(case.teacher.model, case, FRESH)
    after, before = (outputs_of(model, case, FRESH, target) for model in reversed(models))
    outcome.before, outcome.after = (relative_error(o, target, case) for o in (before, after))
    is_half = any(values.dtype == np.float16 for values in target.values())
    rounding = 1e-5 if is_half else 1e-9
    if not outcome.after <= outcome.before * 1.001 + rounding:
        text = f"{outcome.before:.4g} -> {outcome.after:.4g} where the report says {said}"
        outcome.faults.append(("worse on fresh samples", text))


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
        and (
            wanted is not None
            or len(parts) == 1
            or any(not np.array_equal(first, part[name]) for part in parts[1:])
        )
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


def normalised(message: str) -> str:
    """Leave names and numbers out of a message, so that equal kinds look equal."""
    message = re.sub(r"'[^']*'", "'_'", message)
    return re.sub(r"-?\d[\d.e+-]*", "#", message)[:150]


def where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:150]} @ {places}"


def judged(judge: Judge, seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Judge seeds, side by side where there are several jobs."""
    if jobs == 1:
        yield from map(judge, seeds)
        return
    # Unlike a pool of multiprocessing, an executor does not wait for a process that was killed.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(judge, seeds, chunksize=10)


def broken_limits(limits: Limits, outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
    """Give the seeds of each kind of fault that is more frequent than it may be."""
    accepted = sum(outcome.result == "accepted" for outcome in outcomes)
    broken = {}
    for kind, share in limits.items():
        seeds = [o.seed for o in outcomes if any(fault == kind for fault, _ in o.faults)]
        if len(seeds) > share * accepted:
            broken[kind] = seeds
    return broken


def errors_and_faults(limits: Limits, outcomes: Sequence[Outcome]) -> list[str]:
    """Give lines of what fits gain on fresh samples, of results and of faults."""
    results = Counter(outcome.result or "not fitted" for outcome in outcomes)
    faults = Counter(kind for o in outcomes for kind in {fault for fault, _ in o.faults})
    gains = [
        math.log10(max(o.before, 1e-9) / max(o.after, 1e-9))
        for o in outcomes
        if o.result == "accepted" and o.before == o.before and o.after == o.after
    ]
    mean = sum(gains) / max(len(gains), 1)
    return [
        f"mean gain on fresh samples: 10^{mean:.2f} over {len(gains)} accepted fits",
        *(f"{count:6d} {result}" for result, count in results.most_common()),
        "graphs with a fault, by kind:",
        *(f"{faults[kind]:6d} {kind}" for kind in limits),
    ]


def command(
    module: str,
    description: str | None,
    judge: Judge,
    limits: Limits,
    summary: Callable[[Sequence[Outcome]], str],
    arguments: Sequence[str] | None = None,
) -> int:
    """Judge many seeds, print the counts; return 1 if a limit is broken.

    Args:
        module: that is called.
        description: of it.
        judge: see `Judge`.
        limits: see `Limits`.
        summary: the counts, one a line.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="one seed, with all that was seen")
    parser.add_argument("--json", type=Path, help="file for the outcome of each seed")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.count)
    if options.only is not None:
        seeds = range(options.only, options.only + 1)
    outcomes = sorted(judged(judge, seeds, options.jobs), key=lambda outcome: outcome.seed)
    if options.json:
        records = [vars(outcome) for outcome in outcomes]
        options.json.write_text(json.dumps(records), encoding="utf-8")
    print(summary(outcomes))
    for outcome in outcomes:
        for kind, text in outcome.faults:
            print(f"seed {outcome.seed}: {kind}: {text}")
    broken = broken_limits(limits, outcomes)
    for kind, found in broken.items():
        print(f"limit broken: {kind}: seeds {', '.join(map(str, found))}")
    return 1 if broken else 0

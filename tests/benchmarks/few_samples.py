"""Few samples: what judges a fit, and what a fit per fold would say: ``python -m
tests.benchmarks.few_samples --count 100``.

A fit to few samples is judged by students that are fitted without a fold each, beside it
(``fitting.coordinate_descent``). Here fits of small random networks to 3 to 15 samples, half of
them with heavy tails, are judged by these and by descents of their own to the samples of each
trial, and on fresh samples.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.starts import Start
from fskd_onnx.pipeline.trials import Candidate, choose, error_of, fits, try_out
from fskd_onnx.pipeline.verdict import judge
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, prepared, run
from tests.networks import NETWORKS

_NETWORKS = ("chain", "residual", "depthwise", "grouped", "concat", "flatten", "matmul", "rank 1")
_FRESH = 400


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.few_samples")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    counts: Counter[tuple[bool, bool, bool]] = Counter()
    ratios = []
    for seed in range(options.seed, options.seed + options.count):
        compared = _compare(seed)
        if compared is not None:
            verdict, found = compared
            counts[verdict] += 1
            ratios += found
    print("| given out | by a fit per fold | fits | closer on fresh samples |\n|---|---|---|---|")
    for stands, alone in ((True, True), (True, False), (False, True), (False, False)):
        gains = [counts[stands, alone, gain] for gain in (True, False)]
        words = ("yes" if stands else "no", "yes" if alone else "no")
        print(f"| {words[0]} | {words[1]} | {sum(gains)} | {gains[0]} |")
    print("\nerrors of the judged students beside those of a fit per fold, geometric means:")
    for name, logs in zip(("held-out", "fresh"), np.log(ratios).T, strict=True):
        mean, spread = logs.mean(), 2 * logs.std() / np.sqrt(len(logs))
        print(f"{name} samples: {np.exp(mean):.2f} +- {np.exp(mean) * spread:.2f}")


def _compare(seed: int) -> tuple[tuple[bool, bool, bool], list[tuple[float, float]]] | None:
    """Compare both ways to judge one case.

    Returns:
        Both verdicts, and whether the fit is closer on fresh samples; and for each start the ratio
        of the errors on held-out and on fresh samples. None where there is nothing to choose.
    """
    rng = np.random.default_rng(seed)
    network, count = NETWORKS[_NETWORKS[seed % len(_NETWORKS)]], int(rng.integers(3, 16))
    teacher, student = network.teacher(seed), network.student(seed)
    tail = float(rng.random() < 0.5)
    samples, fresh = (
        _scaled(network.samples(number, seed + 1 + at), tail, rng)
        for at, number in enumerate((count, _FRESH))
    )
    run_options = RunOptions(providers=("cpu",), seed=int(rng.integers(10)))
    adapter = str(rng.choice(["pointwise", "kernel", "auto"]))
    options = FitOptions(run_options, adapter, str(rng.choice(["kept", "select", "auto"])))
    problem = prepared(teacher, student, samples, options)
    found = try_out(problem, options, StageTimer())
    if not found:
        return None
    target = run(teacher, fresh)
    alone, ratios = [], []
    for candidate in found:
        models = _fit_per_fold(problem, options, candidate.fitted.start)
        alone.append(_judged(problem, candidate, models))
        judged = [candidate.fitted.of_trial(number).model for number in range(len(models))]
        errors = [sum(_error(model, target, fresh) for model in them) for them in (judged, models)]
        held_out = candidate.errors.mean(), alone[-1].errors.mean()
        if min(*errors, *held_out) > 0:
            ratios.append((float(held_out[0] / held_out[1]), errors[0] / errors[1]))
    best, other = (choose(candidates, problem.before) for candidates in (found, alone))
    before, after = (_error(model, target, fresh) for model in (student, best.fitted.model))
    return (_is_given_out(problem, best), _is_given_out(problem, other), after < before), ratios


def _fit_per_fold(problem: FitProblem, options: FitOptions, start: Start) -> list[onnx.ModelProto]:
    """Return descents of their own to the samples of each trial."""
    trials = problem.splits.trials
    found = (fits(problem, trial, options, StageTimer(), starts=[start]) for trial in trials)
    return [next(fitted).model for fitted in found]


def _judged(
    problem: FitProblem, candidate: Candidate, models: Sequence[onnx.ModelProto]
) -> Candidate:
    """Return a candidate as other students judge it, one of each trial."""
    outputs = [
        problem.outputs(model, "alone", trial.held_out)
        for model, trial in zip(models, problem.splits.trials, strict=True)
    ]
    together = [np.concatenate(parts)[problem.judged] for parts in zip(*outputs, strict=True)]
    errors = problem.by_group(problem.sample_errors(together))
    verdict = judge(problem.errors_before, errors, problem.output_size)
    return replace(candidate, after=problem.agreement(together), errors=errors, verdict=verdict)


def _is_given_out(problem: FitProblem, best: Candidate) -> bool:
    return best.verdict.stands and error_of(best.after) < error_of(problem.before)


def _scaled(samples: dict[str, Array], tail: float, rng: np.random.Generator) -> dict[str, Array]:
    """Scale each sample at random."""
    scale: NDArray[np.float64] = np.exp(
        tail * rng.standard_normal(len(next(iter(samples.values()))))
    )
    return {name: (values.T * scale).T.astype(values.dtype) for name, values in samples.items()}


def _error(model: onnx.ModelProto, target: dict[str, Array], samples: dict[str, Array]) -> float:
    mine = run(model, samples)
    return float(sum(np.sum((mine[name] - target[name]) ** 2) for name in target))


if __name__ == "__main__":
    main()

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
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.trials import Candidate, choose, error_of, fits, try_out
from fskd_onnx.pipeline.verdict import judge
from fskd_onnx.reporting.agreement import squared_errors
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
    logs = []
    for seed in range(options.seed, options.seed + options.count):
        compared = _compare(seed)
        if compared is None:
            continue
        stands, alone, gain, log = compared
        counts[stands, alone, gain] += 1
        logs.append(log)
    print("| given out | by a fit per fold | fits | closer on fresh samples |\n|---|---|---|---|")
    for stands, alone in ((True, True), (True, False), (False, True), (False, False)):
        found = [counts[stands, alone, gain] for gain in (True, False)]
        words = ("yes" if stands else "no", "yes" if alone else "no")
        print(f"| {words[0]} | {words[1]} | {sum(found)} | {found[0]} |")
    spread = np.std(logs) / np.sqrt(len(logs))
    print(
        "\nheld-out error beside that of a fit per fold, geometric mean: "
        f"{np.exp(np.mean(logs)):.2f} ({np.exp(np.mean(logs) - 2 * spread):.2f} to "
        f"{np.exp(np.mean(logs) + 2 * spread):.2f})"
    )


def _compare(seed: int) -> tuple[bool, bool, bool, float] | None:
    """Return both verdicts, whether fresh samples are closer, and the logarithm of the errors.

    None where there is nothing to choose.
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
    alone = _fit_per_fold(problem, found, options)
    best, other = (choose(candidates, problem.before) for candidates in (found, alone))
    errors = (_error(model, teacher, fresh) for model in (student, best.fitted.model))
    logs = [
        np.log(mine.errors.mean() / theirs.errors.mean())
        for mine, theirs in zip(found, alone, strict=True)
        if mine.errors.mean() > 0 and theirs.errors.mean() > 0
    ]
    before, after = errors
    return (
        _is_given_out(problem, best),
        _is_given_out(problem, other),
        after < before,
        float(np.mean(logs)) if logs else 0.0,
    )


def _fit_per_fold(
    problem: FitProblem, found: list[Candidate], options: FitOptions
) -> list[Candidate]:
    """Return the candidates as descents to the samples of each trial judge them."""
    judged = []
    for candidate in found:
        start = replace(options, targets=candidate.fitted.targets)
        outputs = []
        for trial in problem.splits.trials:
            (alone,) = fits(problem, trial, start, StageTimer())
            outputs.append(problem.outputs(alone.model, "alone", trial.held_out))
        together = [np.concatenate(parts)[problem.judged] for parts in zip(*outputs, strict=True)]
        errors = problem.by_group(squared_errors(problem.target, together))
        verdict = judge(problem.errors_before, errors, problem.output_size)
        after = problem.agreement(together)
        judged.append(replace(candidate, after=after, errors=errors, verdict=verdict))
    return judged


def _is_given_out(problem: FitProblem, best: Candidate) -> bool:
    return best.verdict.stands and error_of(best.after) < error_of(problem.before)


def _scaled(samples: dict[str, Array], tail: float, rng: np.random.Generator) -> dict[str, Array]:
    """Scale each sample at random."""
    scale: NDArray[np.float64] = np.exp(
        tail * rng.standard_normal(len(next(iter(samples.values()))))
    )
    return {name: (values.T * scale).T.astype(values.dtype) for name, values in samples.items()}


def _error(model: onnx.ModelProto, teacher: onnx.ModelProto, samples: dict[str, Array]) -> float:
    mine, theirs = run(model, samples), run(teacher, samples)
    return float(sum(np.sum((mine[name] - theirs[name]) ** 2) for name in theirs))


if __name__ == "__main__":
    main()

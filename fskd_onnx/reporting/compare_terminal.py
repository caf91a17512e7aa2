"""Comparisons on a terminal: the figures, those of each output, and where a student departs."""

from __future__ import annotations

from rich.console import Console

from fskd_onnx.compare_results import BlockError, Comparison, LatencyComparison, OutputAgreement
from fskd_onnx.reporting.record import departure
from fskd_onnx.reporting.tables import (
    NOT_KNOWN,
    number,
    percent,
    print_facts,
    print_reasons,
    print_table,
)
from fskd_onnx.reporting.terminal import channels_text, left_out_text

# Samples that are named of the worst.
_NAMED = 3


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print how far two models agree.

    Args:
        comparison: what `fskd_onnx.pipeline.compare.compare` found.
        console: where to.
    """
    if comparison.blocks:
        _print_blocks(comparison, console)
    if len(comparison.outputs) > 1:
        _print_outputs(comparison, console)
    facts = {
        "samples": f"{comparison.count}{left_out_text(comparison.samples_left_out)}",
        "relative mse": number(comparison.agreement.relative_mse),
    }
    if comparison.agreement.top1_agreement is not None:
        facts["top-1 agreement"] = percent(comparison.agreement.top1_agreement)
    if len(comparison.outputs) == 1:
        facts |= _facts_of_output(comparison.outputs[0])
    if comparison.accuracy_teacher is not None or comparison.accuracy_student is not None:
        facts["teacher accuracy"] = percent(comparison.accuracy_teacher)
        facts["student accuracy"] = percent(comparison.accuracy_student)
    if comparison.accuracy_errors is not None:
        one, other, both = map(percent, comparison.accuracy_errors)
        facts["standard errors"] = f"{one}, {other}; of the difference {both}"
    departed = departure([block.error for block in comparison.blocks])
    if departed is not None:
        block = comparison.blocks[departed]
        facts["departs at"] = (
            f"{block.student}: the first block with half of the greatest error of one"
        )
    if comparison.latency is not None:
        facts |= _facts_of_latency(comparison.latency)
    if comparison.worst_samples:
        worst = comparison.worst_samples[:_NAMED]
        facts["worst samples"] = ", ".join(f"{s.name} ({number(s.error)})" for s in worst)
    print_facts(facts, console)
    print_reasons("outputs left out of the comparison:", comparison.outputs_left_out, console)


def _facts_of_output(output: OutputAgreement) -> dict[str, str]:
    """Return what is known of the only output, besides its error and its top-1 agreement."""
    facts = {
        "top-5 agreement": (output.top5_agreement, percent),
        "KL divergence": (output.kl_divergence, number),
        "cosine": (output.cosine, cosine_text),
    }
    return {name: text(value) for name, (value, text) in facts.items() if value is not None}


def cosine_text(value: float | None) -> str:
    """Return a cosine with what tells it from one."""
    return NOT_KNOWN if value is None else f"{value:.5f}"


def _facts_of_latency(latency: LatencyComparison) -> dict[str, str]:
    low, high = latency.quartiles
    runs = "1 sample" if latency.samples == 1 else f"{latency.samples} samples"
    return {
        "time of a run": f"{1e3 * latency.teacher:.3g} ms -> {1e3 * latency.student:.3g} ms, "
        f"{runs} at once",
        "time, relative": f"{percent(latency.ratio)} of the teacher's (quartiles {percent(low)}, "
        f"{percent(high)} of {latency.turns} turns)",
    }


def _print_outputs(comparison: Comparison, console: Console) -> None:
    """Print a row for each output: each is on its own scale."""
    rows = [
        (
            output.name,
            number(output.relative_mse),
            cosine_text(output.cosine),
            percent(output.top1_agreement),
            percent(output.top5_agreement),
            number(output.kl_divergence),
        )
        for output in comparison.outputs
    ]
    numbers = ("rel. mse", "cosine", "top-1", "top-5", "KL")
    print_table(("output", *numbers), rows, numbers, ("output",), console)
    console.print()


def _print_blocks(comparison: Comparison, console: Console) -> None:
    """Print a row for each block that was compared, and why others were not."""
    rows = [
        (
            block.student,
            block.op,
            block.teacher or NOT_KNOWN,
            _channels(block),
            number(block.error),
        )
        for block in comparison.blocks
        if not block.reason
    ]
    if rows:
        headers = ("block", "op", "teacher", "channels", "error")
        print_table(headers, rows, ("channels", "error"), ("block", "teacher"), console)
    reasons = ((block.student, block.reason) for block in comparison.blocks if block.reason)
    print_reasons("blocks that are not compared:", reasons, console)
    console.print()


def _channels(block: BlockError) -> str:
    return channels_text(block.channels, block.teacher_width)

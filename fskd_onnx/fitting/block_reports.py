"""The rows of a report: what became of each linear node of a student, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fskd_onnx.fitting.block_fit import BlockFit
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.results import BlockPair, BlockReport, BlockStatus

logger = logging.getLogger(__name__)

# Samples that are named of those that were left out.
_NAMED = 3

Errors = tuple[float | None, float | None]
"""Of a block of the student as it was given, and as it is; None where it was not measured."""


def fitted(
    pair: BlockPair, adapter: str, errors: Errors, ridge: float | None = None, note: str = ""
) -> BlockReport:
    """Return the row of a block that is fitted.

    Args:
        pair: the block.
        adapter: family.
        errors: before and after.
        ridge: strength, where there was one.
        note: what else there is to know of it.
    """
    return _row(pair, BlockStatus.FITTED, errors, adapter=adapter, ridge=ridge, note=note)


def kept(pair: BlockPair, reason: str, errors: Errors = (None, None)) -> BlockReport:
    """Return the row of a block that is not fitted.

    Args:
        pair: the block.
        reason: why.
        errors: before and after.
    """
    logger.info("%s: not fitted, %s", pair.student, reason)
    return _row(pair, BlockStatus.KEPT, errors, reason=reason)


def as_factor(pair: BlockPair, block: str, adapter: str) -> BlockReport:
    """Return the row of a node that is fitted as one of several of a block.

    Args:
        pair: the node.
        block: name of the node at the end of the block.
        adapter: family.
    """
    return BlockReport(
        student=pair.student,
        teacher=None,
        op=pair.op,
        adapter=adapter,
        ridge=None,
        channels=(),
        error_before=None,
        error_after=None,
        status=BlockStatus.FITTED,
        reason="",
        note=f"it is a factor of the block that ends at '{block}'",
    )


def _row(
    pair: BlockPair,
    status: BlockStatus,
    errors: Errors,
    *,
    adapter: str | None = None,
    ridge: float | None = None,
    reason: str = "",
    note: str = "",
) -> BlockReport:
    return BlockReport(
        student=pair.student,
        teacher=pair.teacher,
        op=pair.op,
        adapter=adapter,
        ridge=ridge,
        channels=pair.channels or (),
        error_before=errors[0],
        error_after=errors[1],
        status=status,
        reason=reason,
        teacher_width=pair.teacher_width,
        evidence=pair.evidence,
        note=note,
        first_use=pair.first_use,
    )


def why_kept(block: BlockFit) -> str:
    """Return why a block stays as it is whose fit is no gain."""
    if block.error_before <= block.rounding:
        return "it is the teacher's, to rounding"
    if block.ranks_worse:
        return "the best adapter ranks the teacher's class first less often"
    if block.error_after < block.error_before:
        return "no adapter gains more than rounding"
    return "no adapter is better on held-out folds"


def note_on(samples: Sequence[str]) -> str:
    """Return what is said of samples that were left out where they are not finite."""
    if not samples:
        return ""
    listed = ", ".join(samples[:_NAMED]) + (", ..." if len(samples) > _NAMED else "")
    return f"its activations are not finite on {len(samples)} samples ({listed}) and left out there"


def constants_read(views: Mapping[str, Linear]) -> dict[str, tuple[str, ...]]:
    """Return the names of the constants that linear nodes read, by the node's name."""
    return {
        name: tuple(c.name for c in (view.weight, view.bias_constant) if c is not None)
        for name, view in views.items()
    }

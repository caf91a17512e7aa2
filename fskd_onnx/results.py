"""What a user gets: the records of a fit, a match and a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import onnx


class Evidence(StrEnum):
    """What a block, or its channels, were found by."""

    NONE = ""
    """They were not found."""
    WEIGHTS = "weights"
    """The student's weights are a slice of the teacher's."""
    STRUCTURE = "structure"
    """What stands around the block."""
    ACTIVATIONS = "activations"
    """Activations of the two networks are alike, or will have to be compared."""
    NAMES = "names"
    """A name in common."""
    MAP = "map"
    """The map that was given."""
    OUTPUT = "output"
    """The channels are the network's output, whose order stays."""
    WIDTH = "width"
    """There are as many channels as in the teacher."""
    STREAM = "stream"
    """Another block that has to carry the same channels."""
    SELECTED = "selected"
    """The channels were chosen as new targets."""


@dataclass(frozen=True)
class BlockReport:
    """What became of one block of the student.

    Errors are relative, ``||student - teacher||^2 / ||teacher - mean||^2``, cross-validated over
    folds of samples; ``None`` where the block was never measured (it has no counterpart).
    """

    student: str  # name of the student's linear node
    teacher: str | None  # teacher tensor that it is aligned to
    op: str
    adapter: str | None  # family that was fused
    ridge: float | None  # relative to the mean diagonal of the Gram matrix
    channels: tuple[int, ...]  # teacher channel of each student channel
    error_before: float | None
    error_after: float | None
    status: str  # "fitted" or "kept"
    reason: str  # why it was kept; empty when fitted
    teacher_width: int | None = None  # channels of the teacher tensor; for the terminal only


@dataclass(frozen=True)
class Agreement:
    """How close a model's outputs are to the teacher's, on samples the fit never saw."""

    relative_mse: float
    top1_agreement: float | None  # fraction; None where the output is no row of class scores


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        agreement: of the student with the teacher.
        count: number of samples.
        accuracy_teacher: fraction of samples whose label the teacher ranks first; None without
            labels.
        accuracy_student: the same of the student.
    """

    agreement: Agreement
    count: int
    accuracy_teacher: float | None
    accuracy_student: float | None


@dataclass(frozen=True)
class StageSeconds:
    """Wall-clock seconds per stage."""

    total: float
    capture: float
    solve: float
    fuse: float
    verify: float


@dataclass(frozen=True)
class FitReport:
    """Everything that the JSON report says, in its order."""

    teacher: str
    student: str
    output: str | None
    options: dict[str, object]
    providers: tuple[str, ...]
    sample_count: int
    held_out_count: int
    blocks: tuple[BlockReport, ...]
    before: Agreement
    after: Agreement
    parameters_student: int
    parameters_fused: int
    seconds: StageSeconds
    versions: dict[str, str]


@dataclass(frozen=True)
class BlockPair:
    """A block of the student and what it is aligned to.

    Attributes:
        student: name of the student's linear node.
        op: its operator.
        teacher: the teacher's block output, or None where the block has no counterpart.
        channels: teacher channel of each student channel; None until activations decide.
        teacher_width: number of channels of the teacher's block output.
        evidence: what the channels were found by.
        confidence: 0..1, of the pair or of its least certain channel, whichever is less.
        reason: why the block is left alone; empty where it is not.
        paired_by: what the block was found by.
    """

    student: str
    op: str
    teacher: str | None
    channels: tuple[int, ...] | None
    teacher_width: int | None
    evidence: Evidence
    confidence: float
    reason: str
    paired_by: Evidence = Evidence.NONE


@dataclass(frozen=True)
class Matching:
    """All blocks of a student in the order of its nodes."""

    pairs: tuple[BlockPair, ...]

    @property
    def usable(self) -> tuple[BlockPair, ...]:
        """The pairs that can be fitted."""
        return tuple(pair for pair in self.pairs if not pair.reason)


@dataclass(frozen=True)
class FitResult:
    """A fitted student and how it came about."""

    model: onnx.ModelProto
    report: FitReport

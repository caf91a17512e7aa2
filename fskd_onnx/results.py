"""What a user gets: the records of a fit and of a match."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


class BlockStatus(StrEnum):
    """What became of a block."""

    FITTED = "fitted"
    """An adapter is in its weights."""
    KEPT = "kept"
    """Its bytes are those of the student's file."""
    REPLACED = "replaced"
    """It has other bytes, though no adapter was better: its channels were chosen anew, or what
    stood beside it was folded into it."""


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
    PLAN = "plan"
    """The plan that the student was made by."""
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

    Attributes:
        student: name of the student's linear node.
        teacher: the teacher's tensor that it is aligned to; None without a counterpart.
        op: the node's operator.
        adapter: family of the adapter that was fused; None where the block was kept.
        ridge: strength of the ridge, relative to the mean diagonal of the Gram matrix.
        channels: teacher channel of each student channel.
        error_before: ``||student - teacher||^2 / ||teacher - mean||^2`` of the student as it was
            given, cross-validated over folds of samples; None where it was not measured.
        error_after: the same of the block in the student that is given out, before gradient steps.
        status: whether it was fitted, kept or replaced.
        reason: why it was not fitted; empty where it was.
        teacher_width: number of channels of the teacher's tensor; None where that is not known.
        evidence: what the channels were found by; ``SELECTED`` where they were chosen anew.
        note: what else there is to know of a fitted block; mostly nothing.
        adds_node: whether an Add was put behind it for its bias.
        first_use: the first of several nodes that use the same weights; empty for a node alone.
    """

    student: str
    teacher: str | None
    op: str
    adapter: str | None
    ridge: float | None
    channels: tuple[int, ...]
    error_before: float | None
    error_after: float | None
    status: BlockStatus
    reason: str
    teacher_width: int | None = None
    evidence: Evidence = Evidence.NONE
    note: str = ""
    adds_node: bool = False
    first_use: str = ""


@dataclass(frozen=True)
class Agreement:
    """How close the outputs of a student are to the teacher's on some samples.

    Attributes:
        relative_mse: ``||student - teacher||^2 / ||teacher - mean||^2``; of several outputs, or
            parts of one, the mean of theirs, see ``fskd_onnx.linalg.output_scales``.
        top1_agreement: fraction of the samples for which both rank the same class first; None
            where no output is a row of class scores.
    """

    relative_mse: float
    top1_agreement: float | None


@dataclass(frozen=True)
class SampleError:
    """How far a student is from its teacher on one sample.

    Attributes:
        name: of the sample; of an image, the path of its file.
        error: its part of the relative error: the mean over all samples is that of `Agreement`.
        error_before: the same of the student before a fit; None without one.
    """

    name: str
    error: float
    error_before: float | None = None


@dataclass(frozen=True)
class OutputErrors:
    """The error of an output, or a part of one, on samples that the fit has not seen.

    Attributes:
        name: of the output in the teacher; behind it, of a part, that of the tensor that it is.
        before: ``||student - teacher||^2 / ||teacher - mean||^2`` of the student as it was given.
        after: the same of the fitted student.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Verdict:
    """How certain it is that a fit brings the student closer, by samples that it has not seen.

    Attributes:
        independent_count: number of independent samples: of groups of samples that belong together
            or show the same, identical ones being there once.
        error_ratio: what the error on one of them is multiplied by: the geometric mean of that of
            the fitted student by that of the student as it was given.
        interval: of the same, 90%, from its spread over the independent samples.
        stands: whether the gain is more than chance. What does not stand is not written.
        doubt: why it does not; empty where it does.
    """

    independent_count: int
    error_ratio: float
    interval: tuple[float, float]
    stands: bool
    doubt: str = ""


@dataclass(frozen=True)
class RefineReport:
    """What gradient steps from the closed form came to.

    Attributes:
        steps: how many were asked for.
        steps_taken: how many the student that is given out has made; 0 where they are not kept.
        error_before: relative error of the network's outputs on held-out samples in closed form.
        error_after: the same with the steps; None where no state of them could be judged. How many
            steps that is of is chosen by other held-out samples.
        kept: whether they are in the student that is given out.
        reason: why they are not; empty where they are.
    """

    steps: int
    steps_taken: int
    error_before: float
    error_after: float | None
    kept: bool
    reason: str


@dataclass(frozen=True)
class StageSeconds:
    """Wall-clock seconds of a fit and of its stages.

    Attributes:
        total: of the whole call.
        capture: running both networks and forming the moments.
        solve: finding the adapters.
        fuse: writing them into the student's weights.
        verify: judging the student on held-out samples, before and after.
        refine: making gradient steps.
    """

    total: float
    capture: float
    solve: float
    fuse: float
    verify: float
    refine: float = 0.0


@dataclass(frozen=True)
class FitReport:
    """What a fit found, in the order of the JSON report.

    Attributes:
        teacher: path or name of the original network.
        student: path or name of the compressed network.
        output: path of the fitted student; None where none was written.
        options: the options of the fit, by name.
        providers: execution providers that were used, in order.
        sample_count: number of samples.
        independent_count: number of independent groups that the samples are.
        held_out_count: how many of them each verdict was held out on.
        blocks: the student's blocks, in the order of its nodes.
        before: agreement of the student as it was given, on held-out samples.
        after: agreement of the fitted student, on the same samples.
        verdict: how certain the gain is.
        parameters_student: number of parameters of the student as it was given.
        parameters_fused: number of parameters of the fitted student.
        seconds: time per stage.
        versions: versions of this package and of those it computes with.
        samples_left_out: names of the held-out samples that the verdict leaves out, since an output
            of the teacher or of the given student is not finite.
        outputs_left_out: outputs that could not be compared, each with the reason.
        worst_samples: the held-out samples on which the fitted student errs most, the worst
            first.
        command: the command that made it, as it was typed; empty for a call from Python.
        advice: what to do next, a sentence each, where the figures call for it.
        outputs: the error of each output, where there are several.
        refine: what gradient steps came to; None where none were asked for.
    """

    teacher: str
    student: str
    output: str | None
    options: dict[str, object]
    providers: tuple[str, ...]
    sample_count: int
    independent_count: int
    held_out_count: int
    blocks: tuple[BlockReport, ...]
    before: Agreement
    after: Agreement
    verdict: Verdict
    parameters_student: int
    parameters_fused: int
    seconds: StageSeconds
    versions: dict[str, str]
    samples_left_out: tuple[str, ...] = ()
    outputs_left_out: tuple[tuple[str, str], ...] = ()
    worst_samples: tuple[SampleError, ...] = ()
    command: str = ""
    advice: tuple[str, ...] = ()
    outputs: tuple[OutputErrors, ...] = ()
    refine: RefineReport | None = None

    @property
    def added_nodes(self) -> tuple[str, ...]:
        """Names of the blocks that an Add was put behind, for their bias."""
        return tuple(block.student for block in self.blocks if block.adds_node)


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
        confidence: 0..1, of the pair or of its least certain channel, whichever is less: by how
            much better it fits than the next best, not how well. 1 is beyond doubt, 0 says that
            another one fits as well.
        reason: why the block is left alone; empty where it is not.
        paired_by: what the block was found by.
        first_use: the first of several nodes that use the same weights; empty for a node alone.
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
    first_use: str = ""


@dataclass(frozen=True)
class Matching:
    """All blocks of a student and what they are aligned to.

    Attributes:
        pairs: one for each block, in the order of the student's nodes.
    """

    pairs: tuple[BlockPair, ...]

    @property
    def usable(self) -> tuple[BlockPair, ...]:
        """Return the pairs that can be fitted."""
        return tuple(pair for pair in self.pairs if not pair.reason)


@dataclass(frozen=True)
class FitResult:
    """A fitted student and how it came about.

    Attributes:
        model: the fitted student.
        report: what became of its blocks, and how close it is to its teacher.
    """

    model: onnx.ModelProto
    report: FitReport

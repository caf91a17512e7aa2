"""What a user gets of a comparison: how far a student is from its teacher, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fskd_onnx.results import Agreement, SampleError


@dataclass(frozen=True)
class OutputAgreement:
    """How close one output of a student is to the teacher's.

    Attributes:
        name: of the output in the teacher; behind it, of a part of one, that of the tensor that it
            is (``fskd_onnx.linalg.output_scales``).
        student: its name in the student.
        relative_mse: ``||student - teacher||^2 / ||teacher - mean||^2`` of this output; the mean of
            that of its parts.
        cosine: mean cosine of both outputs of a sample; None where one of them is zero.
        top1_agreement: fraction of the samples for which both rank the same class first; None
            where the output holds no scores of classes.
        top5_agreement: fraction for which the class that the teacher ranks first is among the first
            five of the student; None likewise, or where there are no more than five.
        kl_divergence: mean KL(teacher || student) of the probabilities of classes, in nats; None
            likewise.
    """

    name: str
    student: str
    relative_mse: float
    cosine: float | None = None
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    kl_divergence: float | None = None


@dataclass(frozen=True)
class BlockError:
    """How far a block output of a student is from its teacher's, the student running as it is.

    Attributes:
        student: name of the student's linear node.
        teacher: the teacher's block output; None without a counterpart.
        op: the node's operator.
        channels: teacher channel of each student channel; empty where they are not known.
        teacher_width: number of channels of the teacher's block output; None where not known.
        error: ``||student - teacher||^2 / ||teacher - mean||^2``, the mean being that of each
            channel; None where it was not measured.
        reason: why it was not measured; empty where it was.
    """

    student: str
    teacher: str | None
    op: str
    channels: tuple[int, ...]
    teacher_width: int | None
    error: float | None
    reason: str


@dataclass(frozen=True)
class LatencyComparison:
    """How long both models take in the ONNX Runtime of this machine, measured in turns.

    Attributes:
        teacher: median seconds of a run of the teacher.
        student: the same of the student.
        ratio: median over the turns of the student's time by the teacher's.
        quartiles: of the same: a quarter of the turns is below the first, one above the second.
        turns: how many there were.
        samples: how many samples a run has.
    """

    teacher: float
    student: float
    ratio: float
    quartiles: tuple[float, float]
    turns: int
    samples: int


@dataclass(frozen=True)
class Comparison:
    """How far a student agrees with its teacher.

    Attributes:
        agreement: of the student with the teacher.
        count: number of samples that the figures are of.
        accuracy_teacher: fraction of samples whose label the teacher ranks first; None without
            labels.
        accuracy_student: the same of the student.
        samples_left_out: names of the samples for which an output of either model is not finite.
        outputs_left_out: outputs that could not be compared, each with the reason.
        teacher: path or name of the teacher.
        student: path or name of the student.
        options: the options of the comparison, by name.
        providers: execution providers that were used, in order.
        worst_samples: as of a fit, of all samples.
        error_quantiles: of the errors of single samples, each relative to the teacher's spread
            around its mean output: the least, those that each further twentieth of the samples does
            not exceed, the greatest; none where the outputs are not numbers.
        versions: as of a fit.
        command: as of a fit.
        outputs: how close each output is that was compared.
        accuracy_errors: standard errors of ``accuracy_teacher``, of ``accuracy_student`` and of
            their difference, in which samples that both get right or wrong have no part; None
            without labels.
        blocks: how far each block of the student is, in the order of its nodes; none unless asked
            for.
        latency: how long both take; None unless asked for.
    """

    agreement: Agreement
    count: int
    accuracy_teacher: float | None
    accuracy_student: float | None
    samples_left_out: tuple[str, ...] = ()
    outputs_left_out: tuple[tuple[str, str], ...] = ()
    teacher: str = ""
    student: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    worst_samples: tuple[SampleError, ...] = ()
    error_quantiles: tuple[float, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    outputs: tuple[OutputAgreement, ...] = ()
    accuracy_errors: tuple[float, float, float] | None = None
    blocks: tuple[BlockError, ...] = ()
    latency: LatencyComparison | None = None

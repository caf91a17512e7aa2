"""What a user gets of a compression: the plan, the report, the student.

A plan has one record for each choice unit of the teacher, also for those that are left whole:

* ``width``: a set of coupled channels, of which some go;
* ``factors``: a linear node that becomes a chain of several;
* ``block``: a residual block that goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from fskd_onnx.results import FitReport


class UnitKind(StrEnum):
    """What a choice unit is."""

    WIDTH = "width"
    FACTORS = "factors"
    BLOCK = "block"


@dataclass(frozen=True)
class UnitPlan:
    """What becomes of one choice unit.

    Attributes:
        unit: its name: of the first node that opens the channels, of the node that is factorized,
            or of the block.
        kind: what it is.
        method: by which it is reduced, a name of ``MethodName``; "" where it is left whole.
        before: of channels, how many there are; of factors, the ranks at which the chain loses
            nothing; of a block, (1,).
        after: of channels, how many stay; of factors, the ranks; of a block that goes, (0,).
            The same as ``before`` where the unit is left whole.
        kept: the teacher's channels that stay, ascending; None where they are chosen later, and
            for what is not channels.
        macs_before: multiply-adds of its nodes (of channels, of the nodes that write them) for one
            sample in the teacher.
        macs_after: the same in the student, with all that the plan says.
        parameters_before: parameters of these nodes in the teacher.
        parameters_after: the same in the student.
        error: estimate of what the choice adds to the relative error of the network's output, after
            the refit; None where there is no estimate.
        reason: why the unit is left whole, or what else there is to know of it; mostly nothing.
    """

    unit: str
    kind: UnitKind
    method: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    kept: tuple[int, ...] | None = None
    macs_before: int = 0
    macs_after: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    error: float | None = None
    reason: str = ""

    @property
    def is_reduced(self) -> bool:
        """Whether anything of it goes."""
        return bool(self.method)


@dataclass(frozen=True)
class Plan:
    """What becomes of all choice units of a teacher.

    Attributes:
        teacher: what the teacher is called.
        units: one record for each unit: widths, then factors, then blocks, each in the order of the
            teacher's nodes.
    """

    teacher: str
    units: tuple[UnitPlan, ...]

    def reduced(self, kind: UnitKind) -> tuple[UnitPlan, ...]:
        """Return the units of a kind of which something goes."""
        return tuple(unit for unit in self.units if unit.kind == kind and unit.is_reduced)

    @property
    def is_reduced(self) -> bool:
        """Whether anything of any unit goes."""
        return any(unit.is_reduced for unit in self.units)

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """Return the channels that stay of each set of which some go, where they are known."""
        narrowed = self.reduced(UnitKind.WIDTH)
        return {unit.unit: unit.kept for unit in narrowed if unit.kept is not None}

    def ranks(self, form: str) -> Mapping[str, tuple[int, ...]]:
        """Return the ranks of each node that becomes a chain of a form."""
        factored = self.reduced(UnitKind.FACTORS)
        return {unit.unit: unit.after for unit in factored if unit.method == form}

    @property
    def dropped(self) -> tuple[str, ...]:
        """Return the names of the residual blocks that go."""
        return tuple(unit.unit for unit in self.reduced(UnitKind.BLOCK))


@dataclass(frozen=True)
class Change:
    """A figure of the teacher and of the student; None where it was not measured.

    Attributes:
        before: of the teacher.
        after: of the student.
    """

    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        """What is left of it; None where that is not known."""
        return None if self.after is None or not self.before else self.after / self.before


UNKNOWN = Change(None, None)
"""A figure that was not measured."""


@dataclass(frozen=True)
class CompressTotals:
    """What a network costs, before and after.

    Attributes:
        macs: multiply-adds for one sample.
        parameters: numbers that the network carries.
        bytes: size of the model with its weights.
        latency: seconds of a run in the ONNX Runtime of this machine, relative to the teacher's,
            which is 1.
    """

    macs: Change
    parameters: Change
    bytes: Change = UNKNOWN
    latency: Change = UNKNOWN


@dataclass(frozen=True)
class CompressSeconds:
    """Wall-clock seconds of a compression and of its stages.

    Attributes:
        total: of the whole call.
        analysis: running the teacher, errors of all candidates and sensitivities.
        plan: choosing.
        rewrite: carrying the plan out.
        latency: measuring on this machine.
        fit: fitting the student.
    """

    total: float
    analysis: float
    plan: float
    rewrite: float
    latency: float
    fit: float


@dataclass(frozen=True)
class CompressReport:
    """What a compression found, in the order of the JSON report.

    Attributes:
        teacher: path or name of the original network.
        output: path of the student; None where none was written.
        options: the options of the compression, by name.
        plan: what became of each unit; of several rounds, in the last one.
        totals: what the networks cost.
        fit: the report of the fit of the student; None where it was not fitted.
        seconds: time per stage.
        versions: versions of this package and of those it computes with.
        notes: what else there is to know, a sentence each: that nothing was fitted and why, what
            earlier rounds came to, or which nodes are no faster for having fewer multiply-adds.
        command: as of a fit.
    """

    teacher: str
    output: str | None
    options: Mapping[str, object]
    plan: Plan
    totals: CompressTotals
    fit: FitReport | None
    seconds: CompressSeconds
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class CompressResult:
    """A student that was made from a teacher, and how it came about.

    Attributes:
        model: the student; None after a dry run.
        plan: what became of each unit of the teacher; of several rounds, what the last one made of
            the student before it.
        report: what the student costs, and how close it is to its teacher.
    """

    model: onnx.ModelProto | None
    plan: Plan
    report: CompressReport

"""What a plan may do to the choice units of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fskd_onnx.compress_results import UnitKind, UnitPlan


@dataclass(frozen=True)
class UnitLimits:
    """What a plan may do to a unit.

    Attributes:
        before: as in ``UnitPlan``.
        groups: of channels, the number of equal runs that keep equally many each.
        reason: why it has to stay whole; "" where it does not.
        parts: sets of channels, of each of which one at least has to stay.
    """

    before: tuple[int, ...]
    groups: int = 1
    reason: str = ""
    parts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class PlanLimits:
    """What a plan of a teacher may name, each in the order of the teacher's nodes.

    Attributes:
        widths: sets of coupled channels, by name.
        factors: of each node that may be factorized, the forms.
        blocks: residual blocks, by name.
    """

    widths: Mapping[str, UnitLimits] = field(default_factory=dict)
    factors: Mapping[str, Mapping[str, UnitLimits]] = field(default_factory=dict)
    blocks: Mapping[str, UnitLimits] = field(default_factory=dict)

    def names(self, kind: UnitKind) -> Mapping[str, object]:
        """Return the units of a kind."""
        of_kind: dict[UnitKind, Mapping[str, object]] = {
            UnitKind.WIDTH: self.widths,
            UnitKind.FACTORS: self.factors,
            UnitKind.BLOCK: self.blocks,
        }
        return of_kind[kind]

    def of(self, kind: UnitKind, unit: str, method: str) -> UnitLimits | None:
        """Return what a method may do to a unit; None where there is nothing of the kind."""
        if kind == UnitKind.FACTORS:
            return self.factors[unit].get(method)
        return (self.widths if kind == UnitKind.WIDTH else self.blocks)[unit]

    def whole(self, kind: UnitKind, unit: str, reason: str = "") -> UnitPlan:
        """Return the record of a unit that stays whole.

        Args:
            kind: of the unit.
            unit: its name.
            reason: why, where nothing else forbids it.
        """
        if kind == UnitKind.FACTORS:
            reasons = [limits.reason for limits in self.factors[unit].values()]
            forbidden = reasons[0] if reasons and all(reasons) else ""
            return UnitPlan(unit, kind, "", (), (), reason=forbidden or reason)
        limits = (self.widths if kind == UnitKind.WIDTH else self.blocks)[unit]
        sizes = limits.before
        return UnitPlan(unit, kind, "", sizes, sizes, reason=limits.reason or reason)

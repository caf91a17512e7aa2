"""One entry of the file of a plan, checked against the teacher that the plan is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fskd_onnx.compress_options import KIND_OF_METHOD
from fskd_onnx.compress_results import UnitKind, UnitPlan
from fskd_onnx.compression.plan_limits import PlanLimits, UnitLimits
from fskd_onnx.errors import PlanError, one_of
from fskd_onnx.printable import shortened

LEFT_WHOLE = "the plan leaves it whole"
"""Why a unit is not reduced, where nothing forbids it."""

_OF = {
    UnitKind.WIDTH: "set of channels that may be narrowed",
    UnitKind.FACTORS: "node that may be factorized",
    UnitKind.BLOCK: "residual block",
}


@dataclass(frozen=True)
class EntryCheck:
    """Reads one entry of the file of a plan; raises `PlanError` where it says what cannot be.

    Attributes:
        file: name of the plan.
        limits: of the teacher.
    """

    file: str
    limits: PlanLimits

    def __call__(self, entry: Any) -> UnitPlan:
        """Read one entry."""
        if not isinstance(entry, dict) or not isinstance(entry.get("unit"), str):
            raise PlanError(
                f"{self.file}: an entry names no unit ('unit'): {shortened(repr(entry))}"
            )
        name, kind = entry["unit"], entry.get("kind")
        if kind not in tuple(UnitKind):
            raise PlanError(
                f"{self.file}: the kind of '{name}' must be {one_of(UnitKind)}, not "
                f"{shortened(repr(kind))}"
            )
        kind = UnitKind(kind)
        if name not in self.limits.names(kind):
            raise PlanError(
                f"{self.file}: the teacher has no {_OF[kind]} called '{name}'; it has "
                f"{_some(self.limits.names(kind))}"
            )
        method = entry.get("method")
        if method in (None, ""):
            return self._whole(entry, name, kind)
        allowed = [known for known, of_kind in KIND_OF_METHOD.items() if of_kind == kind]
        if method not in allowed:
            raise PlanError(
                f"{self.file}: the method of '{name}' must be {one_of(allowed)}, or empty to leave "
                f"it whole, not {shortened(repr(method))}"
            )
        limits = self.limits.of(kind, name, method)
        if limits is None or limits.reason:
            why = "it has no such form" if limits is None else limits.reason
            raise PlanError(
                f"{self.file}: '{name}' has to stay whole ({why}); set its method to \"\""
            )
        return self._reduced(entry, name, kind, method, limits)

    def _whole(self, entry: Mapping[str, Any], name: str, kind: UnitKind) -> UnitPlan:
        """Read an entry of a unit that stays whole."""
        reason = entry.get("reason")
        unit = self.limits.whole(kind, name, str(reason) if reason else LEFT_WHOLE)
        if kind == UnitKind.FACTORS:
            return unit
        self._check_before(entry, name, unit.before)
        after = self._sizes(entry, "after", name, unit.before)
        if after != unit.before:
            raise PlanError(
                f"{self.file}: '{name}' names no method and yet a size of {_shown(after)} of "
                f"{_shown(unit.before)}; name the method, or correct the size"
            )
        return unit

    def _reduced(
        self,
        entry: Mapping[str, Any],
        name: str,
        kind: UnitKind,
        method: str,
        limits: UnitLimits,
    ) -> UnitPlan:
        """Read an entry of a unit of which something goes."""
        before = limits.before
        self._check_before(entry, name, before)
        after = self._sizes(entry, "after", name, None)
        least = 0 if kind == UnitKind.BLOCK else 1
        if len(after) != len(before) or not all(
            least <= new <= old for new, old in zip(after, before, strict=True)
        ):
            raise PlanError(
                f"{self.file}: the size of '{name}' must be between {least} and {_shown(before)}, "
                f"not {_shown(after)}"
            )
        if after == before:
            return self.limits.whole(kind, name, LEFT_WHOLE)
        kept = None
        if kind == UnitKind.WIDTH:
            kept = self._kept(name, entry.get("kept"), after[0], limits)
        reason = entry.get("reason")
        return UnitPlan(
            name, kind, method, before, after, kept, reason=str(reason) if reason else ""
        )

    def _check_before(self, entry: Mapping[str, Any], name: str, expected: tuple[int, ...]) -> None:
        """Check that an entry is of a unit of the teacher's size."""
        before = self._sizes(entry, "before", name, expected)
        if before != expected:
            raise PlanError(
                f"{self.file}: is for a unit '{name}' of size {_shown(before)}, and the teacher's "
                f"has {_shown(expected)}; it is the plan of another network"
            )

    def _sizes(
        self, entry: Mapping[str, Any], key: str, name: str, default: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        """Return sizes that an entry states: a number, or a list of some."""
        value = entry.get(key)
        if value is None and default is not None:
            return default
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(size, int) and not isinstance(size, bool) for size in listed):
            raise PlanError(
                f"{self.file}: '{key}' of '{name}' must be an integer or a list of some, not "
                f"{shortened(repr(value))}"
            )
        return tuple(listed)

    def _kept(
        self, name: str, channels: Any, width: int, limits: UnitLimits
    ) -> tuple[int, ...] | None:
        """Return the channels that stay; None where they are left to the method."""
        among, groups = limits.before[0], limits.groups
        if width % groups:
            raise PlanError(
                f"{self.file}: the size of '{name}' must be a multiple of {groups}, the number of "
                f"its groups, not {width}"
            )
        if channels is None:
            return None
        if not isinstance(channels, list) or not all(
            isinstance(channel, int) and not isinstance(channel, bool) for channel in channels
        ):
            raise PlanError(f"{self.file}: 'kept' of '{name}' is not a list of channels or null")
        wrong = next((c for c in channels if not 0 <= c < among), None)
        if wrong is not None:
            raise PlanError(
                f"{self.file}: keeps the channel {shortened(str(wrong))} of '{name}', which has 0 "
                f"to {among - 1}"
            )
        if len(channels) != width:
            raise PlanError(
                f"{self.file}: keeps {len(channels)} channels of '{name}' and gives it a size of "
                f"{width}; correct one of them, or set 'kept' to null"
            )
        if any(one >= other for one, other in pairwise(channels)):
            raise PlanError(
                f"{self.file}: the channels that '{name}' keeps must ascend, none of them twice"
            )
        in_group = Counter(channel * groups // among for channel in channels)
        if any(in_group[group] != width // groups for group in range(groups)):
            raise PlanError(
                f"{self.file}: '{name}' has {groups} groups, which must keep equally many channels"
            )
        gone = next((part for part in limits.parts if not set(part) & set(channels)), None)
        if gone is not None:
            raise PlanError(
                f"{self.file}: one of the channels {_shown(gone)} of '{name}' has to stay; keep one"
            )
        return tuple(channels)


def _shown(sizes: Sequence[int]) -> str:
    """Return sizes as messages say them."""
    return shortened(str(sizes[0] if len(sizes) == 1 else tuple(sizes)))


def _some(names: Mapping[str, object]) -> str:
    few = [f"'{name}'" for name in list(names)[:5]]
    return (", ".join(few) + (", ..." if len(names) > len(few) else "")) or "none"

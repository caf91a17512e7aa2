"""What a user of ``compress`` may choose, by the names of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.errors import OptionError, one_of
from fskd_onnx.option_checks import (
    check_integer,
    check_names,
    check_path,
    check_type,
    is_number,
)
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.printable import shortened


class CostName(StrEnum):
    """What a compression takes off: multiply-adds, parameters, or measured seconds of a run."""

    MACS = "macs"
    PARAMS = "params"
    LATENCY = "latency"


class MethodName(StrEnum):
    """Ways to make a network smaller; ``AUTO`` is all of them, whichever costs the least error."""

    AUTO = "auto"
    L1 = "l1"
    SLIMMING = "slimming"
    THINET = "thinet"
    DECOUPLE = "decouple"
    SPATIAL_SVD = "spatial-svd"
    CHANNEL_SVD = "channel-svd"
    TUCKER = "tucker"
    DROP_BLOCK = "drop-block"


KIND_OF_METHOD: Mapping[str, UnitKind] = MappingProxyType(
    {
        MethodName.L1: UnitKind.WIDTH,
        MethodName.SLIMMING: UnitKind.WIDTH,
        MethodName.THINET: UnitKind.WIDTH,
        MethodName.DECOUPLE: UnitKind.FACTORS,
        MethodName.SPATIAL_SVD: UnitKind.FACTORS,
        MethodName.CHANNEL_SVD: UnitKind.FACTORS,
        MethodName.TUCKER: UnitKind.FACTORS,
        MethodName.DROP_BLOCK: UnitKind.BLOCK,
    }
)
"""The kind of unit that each method reduces."""

METHODS_WITH_SAMPLES = (MethodName.THINET, MethodName.DROP_BLOCK)
"""Methods that look at activations; without samples they are refused, and ``AUTO`` does without."""

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *(%?)")


def read_percent(text: str) -> float:
    """Return the fraction that a percentage says: 0.5 for ``50%`` or ``50``.

    A number below 1 has to have its sign, since 0.5 is as likely to mean a half.

    Raises:
        ValueError: it is none.
    """
    found = _PERCENT.fullmatch(text.strip())
    if found is None or not (found[2] or float(found[1]) >= 1 or float(found[1]) == 0):
        raise ValueError(text)
    return float(found[1]) / 100


@dataclass(frozen=True)
class Reduction:
    """How much of what is to be taken off.

    Attributes:
        what: the cost.
        fraction: of the teacher's cost, between 0 and 1.
    """

    what: CostName
    fraction: float

    @property
    def budget(self) -> float:
        """Fraction of the teacher's cost that may be left."""
        return 1 - self.fraction

    def __str__(self) -> str:
        """Return the text that says this."""
        return f"{self.what}={100 * self.fraction:.10g}%"

    @staticmethod
    def read(text: object) -> Reduction:
        """Return what a text such as ``macs=50%`` says.

        Raises:
            OptionError: it says nothing of the kind.
        """
        what, _, percent = text.partition("=") if isinstance(text, str) else ("", "", "")
        try:
            cost, fraction = CostName(what.strip().lower()), read_percent(percent)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction < 1:
            raise OptionError(
                f"reduce must be {one_of(f'{name}=PERCENT' for name in CostName)}, such as "
                f"macs=50%, with more than 0% and less than 100%, not {shortened(repr(text))}"
            )
        return Reduction(cost, fraction)


DEFAULT_REDUCTION = Reduction(CostName.MACS, 0.5)
"""What is taken off unless told."""


@dataclass(frozen=True)
class CompressOptions:
    """How a student is made from a teacher.

    Attributes:
        run: how samples are read and models are run, for the analysis and the fit.
        reduce: what is to be taken off and how much of it, such as "macs=50%", "params=60%" or
            "latency=30%"; None takes off half of the multiply-adds, unless ``max_drop`` is given.
        max_drop: in place of ``reduce``: the fraction by which the agreement with the teacher may
            fall on held-out samples, between 0 and 1; the student gets as small as that allows.
        methods: names of ``MethodName`` that may be mixed.
        skip: names of nodes that are left whole; ``*`` stands for any text.
        round_to: numbers of channels and ranks are multiples of this, finer in layers of fewer than
            32 channels.
        max_ratio: the largest fraction that any one layer may lose of its channels, or of its cost
            where it is factorized; above 0 and at most 1. Blocks that are left out go as a whole.
        dry_run: whether to choose only, and make no student.
        plan: a file of a plan that is carried out in place of a choice, see
            ``fskd_onnx.compression.plan``.
        no_fit: whether the student is left without a fit.
        rounds: in how many steps the student gets as small as it is to be, each from the fitted
            student of the one before, and fitted to the teacher.
        fit: how the student is fitted; it reads samples as ``run`` says.

    Raises:
        OptionError: a value is of a wrong type or impossible, or two exclude each other.
    """

    run: RunOptions = field(default_factory=RunOptions)
    reduce: str | None = None
    max_drop: float | None = None
    methods: tuple[str, ...] = (MethodName.AUTO,)
    skip: tuple[str, ...] = ()
    round_to: int = 8
    max_ratio: float = 0.9
    dry_run: bool = False
    plan: str | None = None
    no_fit: bool = False
    rounds: int = 1
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        """Refuse impossible values and what excludes each other; let ``fit`` run as ``run``."""
        check_type(self.run, "run", RunOptions)
        check_type(self.fit, "fit", FitOptions)
        if self.reduce is not None:
            Reduction.read(self.reduce)
        if self.max_drop is not None and not (is_number(self.max_drop) and 0 < self.max_drop < 1):
            raise OptionError(
                "max_drop must be a number between 0 and 1, such as 0.01 for a hundredth, not "
                f"{shortened(repr(self.max_drop))}"
            )
        check_names(self.methods, "methods", MethodName.L1, tuple(MethodName))
        if not self.methods:
            raise OptionError("methods must name at least one, such as ('auto',)")
        check_names(self.skip, "skip", "conv1")
        check_integer(self.round_to, "round_to", 1)
        check_integer(self.rounds, "rounds", 1)
        if not (is_number(self.max_ratio) and 0 < self.max_ratio <= 1):
            raise OptionError(
                "max_ratio must be a number above 0 and at most 1, not "
                f"{shortened(repr(self.max_ratio))}"
            )
        for name in ("dry_run", "no_fit"):
            check_type(getattr(self, name), name, bool)
        if self.plan is not None:
            check_path(self.plan, "plan")
            object.__setattr__(self, "plan", os.fspath(self.plan))
        self._check_pairs()
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        object.__setattr__(self, "skip", tuple(self.skip))
        self._share_run()

    def _check_pairs(self) -> None:
        """Refuse options of which one would be without effect beside another."""
        if self.reduce is not None and self.max_drop is not None:
            raise OptionError("reduce and max_drop exclude each other; give one of them")
        if self.plan is not None:
            default = {one.name: one.default for one in fields(self)}
            chosen = ("reduce", "max_drop", "methods", "skip", "round_to", "max_ratio")
            for name in chosen:
                if getattr(self, name) != default[name]:
                    raise OptionError(
                        f"{name} and plan exclude each other, since a plan leaves nothing to "
                        "choose; give one of them"
                    )
        if MethodName.AUTO in self.methods and len(self.methods) > 1:
            raise OptionError("methods must be 'auto' or names of others, not both")
        if self.max_drop is not None and self.no_fit:
            raise OptionError(
                "max_drop and no_fit exclude each other, since only a fitted student tells how far "
                "the agreement falls; give one of them"
            )
        if self.rounds > 1:
            self._check_rounds()
        if self.fit.map is not None:
            raise OptionError(
                "fit must have no map: the pairs of a student are known from its plan"
            )

    def _check_rounds(self) -> None:
        """Refuse what several rounds cannot be along with."""
        reasons = {
            "max_drop": "since a drop is reached by one choice",
            "plan": "since a plan leaves nothing to choose",
            "dry_run": "since each round chooses for the fitted student of the one before",
            "no_fit": "since each round goes on from a fitted student",
        }
        for name, why in reasons.items():
            if getattr(self, name):
                raise OptionError(f"{name} and rounds exclude each other, {why}; give one of them")
        if self.reduction.what == CostName.LATENCY:
            raise OptionError(
                "a latency is searched for in one round; give one, or reduce macs or params"
            )

    def _share_run(self) -> None:
        """Let both places that say how samples are read say the same.

        Raises:
            OptionError: they say different things.
        """
        default = RunOptions()
        if self.run != default and self.fit.run not in (default, self.run):
            raise OptionError("run and fit.run say different things; give one of them")
        run = self.fit.run if self.run == default else self.run
        object.__setattr__(self, "run", run)
        object.__setattr__(self, "fit", replace(self.fit, run=run))

    def check_without_samples(self) -> None:
        """Refuse what needs samples, where there are none.

        Raises:
            OptionError: something does.
        """
        needing = [f"the method {name}" for name in self.methods if name in METHODS_WITH_SAMPLES]
        needing += ["max_drop"] if self.max_drop is not None else []
        needing += ["rounds"] if self.rounds > 1 else []
        if needing:
            raise OptionError(f"{needing[0]} needs samples, and none are given; give some")

    @property
    def reduction(self) -> Reduction:
        """What is taken off; without effect beside ``max_drop`` and ``plan``."""
        return DEFAULT_REDUCTION if self.reduce is None else Reduction.read(self.reduce)

    def named(self) -> dict[str, object]:
        """Return the options by name, for a report: those that hold, and each once."""
        found = asdict(self)
        del found["fit"]["run"]
        if self.max_drop is None and self.plan is None:
            found["reduce"] = str(self.reduction)
        return found

    def allows(self, method: str) -> bool:
        """Return whether a method may be used."""
        return MethodName.AUTO in self.methods or method in self.methods

    def skips(self, name: str) -> bool:
        """Return whether a node is to be left whole."""
        return any(_matches(name, pattern) for pattern in self.skip)

    def unused_skips(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return what is to be left whole and is not there, most likely a slip.

        Args:
            names: of all nodes.
        """
        known = list(names)
        return tuple(p for p in self.skip if not any(_matches(name, p) for name in known))


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is of a pattern, in which ``*`` stands for any text."""
    parts = map(re.escape, pattern.split("*"))
    return re.fullmatch(".*".join(parts), name, re.DOTALL) is not None

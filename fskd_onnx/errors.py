"""One exception tree; the message of each is the sentence that the user sees."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from fskd_onnx.printable import printable

if TYPE_CHECKING:
    from fskd_onnx.compress_results import Plan
    from fskd_onnx.results import FitReport


_LINE_BREAKS = re.compile(r"\s*[\r\n]+\s*")


class FskdError(Exception):
    """Base of everything that this package raises on purpose.

    The message is one sentence: the file or node, what is wrong, what to do about it.

    Attributes:
        exit_status: with which the command line ends.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        """Take the message, on one line: names of files and nodes in it may hold anything."""
        super().__init__(printable(_LINE_BREAKS.sub(" ", message)))


class ModelError(FskdError):
    """A model cannot be read, checked, run or written."""


class SamplesError(FskdError):
    """Samples or labels cannot be read, or do not fit the model's inputs."""


class PreprocessError(FskdError):
    """Images were given without a usable description of how they become tensors."""


class MissingNormalizationError(PreprocessError):
    """Nothing says how images become tensors."""


class OptionError(FskdError, ValueError):
    """An argument or an option is of a type or has a value that it cannot have."""

    exit_status: ClassVar[int] = 2


class ProviderError(FskdError):
    """An execution provider that was asked for cannot be used on this machine."""


class MatchError(FskdError):
    """Teacher and student have no block in common, or a pair is impossible."""


class PlanError(FskdError):
    """A plan cannot be read, or is not one for this teacher."""


class OutOfMemoryError(FskdError, MemoryError):
    """The machine has not enough memory, even where fewer samples run at once.

    Attributes:
        network: what did not fit, by its name; empty where it is no run of a network.
    """

    def __init__(self, message: str, network: str = "") -> None:
        """Keep the name."""
        super().__init__(message)
        self.network = network


class NoImprovementError(FskdError):
    """The fit did not bring the student closer to the teacher on held-out samples.

    Attributes:
        report: what became of each block.
    """

    exit_status: ClassVar[int] = 3

    def __init__(self, message: str, report: FitReport) -> None:
        """Keep the report of the fit."""
        super().__init__(message)
        self.report = report


class TargetError(FskdError):
    """A compression cannot reach its target.

    Attributes:
        plan: the one that comes closest; None where there is none.
    """

    exit_status: ClassVar[int] = 3

    def __init__(self, message: str, plan: Plan | None = None) -> None:
        """Keep the plan."""
        super().__init__(message)
        self.plan = plan


def one_of(choices: Iterable[str]) -> str:
    """Return a list of choices as messages say it: ``a, b or c``."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last

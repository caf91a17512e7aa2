"""What is known of the table of accuracy, and the file that keeps it: ``docs/accuracy.json``.

The file is part of the repository, so that the table can be made anew anywhere. It holds

* the models: a digest of teacher and student files per student, and the teachers' accuracies;
* outcomes: what a method did to the small networks of `tests.benchmarks.probes` when it was
  measured, see there;
* entries: one for each method, student and number of samples, which name their outcome.

An entry is stale if its method does something else by now, or if it was measured on other models.
Fits to few samples are judged in another way than fits to many, so that entries of either go by the
probes of their kind; and so do entries of decomposed students and of others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from models.decompose import OF_POINTWISE, RECIPES

FILE = Path(__file__).parents[2] / "docs" / "accuracy.json"

Outcome = dict[str, Any]
"""What `tests.benchmarks.probes.outcome` gives."""

_WIDTH = 180
_MANY = 55  # samples, from which on one part of them is held out (`fskd_onnx.pipeline.splits`)


class Student(NamedTuple):
    """A student of the table.

    Attributes:
        network: a key of `models.zoo.TEACHERS`.
        recipe: one of the network's in `models.prune.recipes` or `models.decompose.recipes`.
    """

    network: str
    recipe: str


STUDENTS = (
    Student("vgg16", "A"),
    Student("vgg16", "D"),
    Student("vgg16", "C"),
    Student("resnet20", "inner50"),
    Student("resnet20", "inner75"),
    Student("resnet20", "stream50"),
    Student("densenet22", "growth50"),
    Student("mobilenetv2", "expansion50"),
)

DECOMPOSED = (
    *(Student(n, recipe) for n in ("vgg16", "resnet20", "densenet22") for recipe in RECIPES),
    *(Student("mobilenetv2", recipe) for recipe in OF_POINTWISE),
)
"""Students whose convolutions are several, a table of their own."""

METHODS = (
    "untouched",
    "paper",
    "pointwise",
    "kernel",
    "factors",
    "select",
    "auto",
    "augment",
    "sgd",
    "refine",
    "refine-1000",
    "gradient",
    "fine-tune",
    "fine-tune-10",
    "distil-10",
)

WITHOUT_SAMPLES = ("untouched", "fine-tune", "fine-tune-10", "distil-10")
"""Methods that see no samples, so that one entry stands for every number of them."""


class Place(NamedTuple):
    """Where an entry stands in the table.

    Attributes:
        method: one of `METHODS`.
        student: one of `STUDENTS`.
        samples: how many; 0 for `WITHOUT_SAMPLES`.
    """

    method: str
    student: Student
    samples: int

    @staticmethod
    def of(method: str, student: Student, samples: int) -> Place:
        """Make one; for `WITHOUT_SAMPLES` the samples do not matter."""
        return Place(method, student, 0 if method in WITHOUT_SAMPLES else samples)

    @property
    def is_decomposed(self) -> bool:
        """Whether the student is one of `DECOMPOSED`."""
        return self.student in DECOMPOSED

    def __str__(self) -> str:
        """Say it in a line."""
        samples = f", {self.samples:,} samples" if self.samples else ""
        return f"{self.method}, {' '.join(self.student)}{samples}"


@dataclass(frozen=True)
class Entry:
    """What several draws of the samples gave.

    Attributes:
        accuracy: on the test images, per cent; mean of the draws.
        half_range: of the draws.
        draws: how many.
        each: accuracies of several draws in order; empty where only their mean is known.
        cpu_seconds: of all threads, mean of the draws: reading files included, the test images not.
        refused: why a draw gave no student, whose accuracy is then that of the untouched one.
        outcome: key of what the method did to the probes; empty for a method that does nothing.
        models: digest of teacher and student, empty where it was not recorded.
    """

    accuracy: float
    half_range: float = 0.0
    draws: int = 1
    each: tuple[float, ...] = ()
    cpu_seconds: float | None = None
    refused: str = ""
    outcome: str = ""
    models: str = ""

    @property
    def known_draws(self) -> tuple[float, ...]:
        """Accuracies of the draws as far as each is known by itself."""
        return (self.accuracy,) if self.draws == 1 else self.each

    def and_draw(self, other: Entry) -> Entry:
        """Add a draw to an entry that knows each of its own."""
        each = (*self.known_draws, other.accuracy)
        seconds = None
        if self.cpu_seconds is not None and other.cpu_seconds is not None:
            seconds = (self.cpu_seconds * self.draws + other.cpu_seconds) / len(each)
        return dataclasses.replace(
            self,
            accuracy=sum(each) / len(each),
            half_range=(max(each) - min(each)) / 2,
            draws=len(each),
            each=each,
            cpu_seconds=seconds,
            refused=self.refused or other.refused,
        )


@dataclass
class Cells:
    """All that is known.

    Attributes:
        entries: by their place.
        outcomes: of methods on the probes, by key.
        models: digest of teacher and student files, by student; empty where it was not recorded.
        teachers: accuracies on the test images, per cent.
    """

    entries: dict[Place, Entry] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    models: dict[Student, str] = field(default_factory=dict)
    teachers: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def load(path: Path = FILE) -> Cells:
        """Read the file."""
        known = json.loads(path.read_text(encoding="utf-8"))
        cells = Cells(teachers=known["teachers"], outcomes=known["outcomes"])
        cells.models = {Student(*name.split()): text for name, text in known["models"].items()}
        for line in known["entries"]:
            place = Place(
                line.pop("method"), Student(*line.pop("student").split()), line.pop("samples")
            )
            cells.entries[place] = Entry(**{**line, "each": tuple(line.get("each", ()))})
        return cells

    def save(self, path: Path = FILE) -> None:
        """Write the file."""
        used = {entry.outcome for entry in self.entries.values()}
        places = sorted(self.entries, key=_position)
        text = _broken(
            {
                "teachers": self.teachers,
                "models": {" ".join(student): text for student, text in self.models.items()},
                "outcomes": {key: self.outcomes[key] for key in sorted(used & {*self.outcomes})},
                "entries": [_line(place, self.entries[place]) for place in places],
            }
        )
        # Renamed when complete: what took hours shall not be lost to an interruption.
        partial = path.with_suffix(".partial")
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(path)

    def is_stale(self, place: Place, now: Outcome) -> bool:
        """Whether a known entry was measured on other models, or its method did something else.

        Args:
            place: where an entry is known.
            now: what the method does to the probes at present.
        """
        entry = self.entries[place]
        if entry.models != self.models.get(place.student, ""):
            return True
        return bool(now) and not same_outcome(self.outcomes[entry.outcome], now, place.samples)

    def key_of(self, method: str, outcome: Outcome) -> str:
        """Give the key of an outcome, which is kept if it is new."""
        if not outcome:
            return ""
        for key, known in self.outcomes.items():
            if key.startswith(f"{method} ") and same_outcome(known, outcome):
                return key
        digest = hashlib.sha256(json.dumps(outcome, sort_keys=True).encode()).hexdigest()
        key = f"{method} {digest[:8]}"
        self.outcomes[key] = outcome
        return key


def same_outcome(one: Outcome, other: Outcome, samples: int | None = None) -> bool:
    """Whether a method did the same: the same bytes, else the same choices and close errors.

    Args:
        one: what it did.
        other: what it did at another time.
        samples: of the entry that is asked for; None: of any.
    """
    apart = {"probes": (), "within": other.get("within")}
    if one | apart != other | apart:
        return False
    first, second = one.get("probes", {}), other.get("probes", {})
    if samples is not None:
        alike = {
            name for name in first | second if (_samples_of(name) < _MANY) == (samples < _MANY)
        }
        first, second = ({n: p for n, p in part.items() if n in alike} for part in (first, second))
    return first.keys() == second.keys() and all(
        first[name]["sha256"] == second[name]["sha256"]
        or _close(first[name]["numbers"], second[name]["numbers"], other["within"])
        for name in first
    )


def _samples_of(probe: str) -> int:
    """Return how many samples a probe had, as the end of its name says."""
    return int(probe.rpartition(", ")[2].removesuffix(" samples"))


def _close(one: object, other: object, within: float) -> bool:
    """Compare nested lists whose floats are errors."""
    if isinstance(one, list) and isinstance(other, list):
        same = (_close(*pair, within) for pair in zip(one, other, strict=True))
        return len(one) == len(other) and all(same)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=within)
    return one == other


def _position(place: Place) -> tuple[int, int, int]:
    students = (*STUDENTS, *DECOMPOSED)
    return METHODS.index(place.method), students.index(place.student), place.samples


def _line(place: Place, entry: Entry) -> dict[str, object]:
    """Give an entry as the file has it: without what has its default, to four decimals."""
    where = {**place._asdict(), "student": " ".join(place.student)}
    found = {
        part.name: getattr(entry, part.name)
        for part in dataclasses.fields(entry)
        if getattr(entry, part.name) != part.default
    }
    if entry.each:
        found["each"] = [round(one, 4) for one in entry.each]
    short = {key: round(part, 4) for key, part in found.items() if isinstance(part, float)}
    return where | found | short


def _broken(value: Any, indent: int = 0) -> str:
    """Write JSON, broken into lines where it does not fit into one."""
    line = json.dumps(value)
    if indent + len(line) <= _WIDTH or not isinstance(value, dict | list):
        return line
    start = " " * (indent + 1)
    if isinstance(value, list):
        parts = [_broken(part, indent + 1) for part in value]
    else:
        parts = [f"{json.dumps(k)}: {_broken(part, indent + 1)}" for k, part in value.items()]
    text = ",\n".join(f"{start}{part}" for part in parts)
    first, last = "[]" if isinstance(value, list) else "{}"
    return f"{first}\n{text}\n{' ' * indent}{last}"

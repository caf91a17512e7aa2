"""The table of accuracy as it is shown, and what is judged by it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tests.benchmarks.cells import Cells, Entry, Place, Student

NAMES = {
    "vgg16": "VGG-16",
    "resnet20": "ResNet-20",
    "densenet22": "DenseNet-22",
    "mobilenetv2": "MobileNetV2",
}

FAMILIES = ("pointwise", "kernel")
FITS = (*FAMILIES, "factors", "select", "auto", "augment", "sgd", "refine", "refine-1000")
WORSE_THAN_A_FAMILY = 0.3
"""How many points ``auto`` may be worse than the better family, in any row."""


class Goal(NamedTuple):
    """A gap to the teacher, in points of accuracy, that a method should not exceed."""

    method: str
    student: Student
    samples: int
    gap: float


GOALS = (
    Goal("auto", Student("vgg16", "channel4"), 500, 1.5),
    Goal("auto", Student("resnet20", "spatial4"), 500, 1.2),
    Goal("auto", Student("resnet20", "channel4"), 500, 2.9),
    Goal("auto", Student("resnet20", "channel4"), 50, 5.4),
    Goal("auto", Student("resnet20", "tucker4"), 500, 1.4),
    Goal("auto", Student("resnet20", "decouple2"), 500, 1.0),
    Goal("auto", Student("resnet20", "branches2"), 500, 1.0),
    Goal("auto", Student("resnet20", "reverse"), 500, 3.9),
    Goal("pointwise", Student("vgg16", "A"), 500, 1.0),
    Goal("pointwise", Student("vgg16", "D"), 500, 6.0),
    Goal("pointwise", Student("vgg16", "C"), 500, 9.5),
    Goal("auto", Student("vgg16", "A"), 500, 0.3),
    Goal("auto", Student("vgg16", "D"), 500, 1.3),
    Goal("auto", Student("vgg16", "C"), 500, 1.3),
    Goal("auto", Student("vgg16", "D"), 50, 2.1),
    Goal("auto", Student("vgg16", "C"), 50, 3.0),
    Goal("auto", Student("resnet20", "inner50"), 500, 1.1),
    Goal("auto", Student("resnet20", "inner75"), 500, 2.8),
    Goal("auto", Student("resnet20", "stream50"), 500, 2.5),
    Goal("refine-1000", Student("vgg16", "D"), 500, 0.8),
    Goal("refine-1000", Student("vgg16", "C"), 500, 0.9),
    Goal("refine-1000", Student("resnet20", "inner50"), 500, 0.6),
    Goal("refine-1000", Student("resnet20", "inner75"), 500, 1.6),
    Goal("refine-1000", Student("resnet20", "stream50"), 500, 1.4),
    Goal("refine-1000", Student("densenet22", "growth50"), 500, 0.8),
    Goal("refine-1000", Student("mobilenetv2", "expansion50"), 500, 0.6),
    Goal("refine", Student("vgg16", "D"), 50, 1.5),
    Goal("refine", Student("vgg16", "C"), 50, 1.8),
    Goal("refine", Student("resnet20", "inner50"), 50, 1.1),
    Goal("refine", Student("resnet20", "inner75"), 50, 3.6),
    Goal("refine", Student("resnet20", "stream50"), 50, 3.8),
    Goal("auto", Student("resnet20", "inner50"), 50, 1.4),
    Goal("auto", Student("resnet20", "inner75"), 50, 5.2),
    Goal("auto", Student("resnet20", "stream50"), 50, 4.5),
)
"""What the project has set itself, after prototypes on teachers of their own."""


@dataclass(frozen=True)
class Table:
    """A part of what is known, and how it is shown.

    Attributes:
        students: the rows, in order.
        samples: a row of each student for each count.
        methods: the columns.
        cells: what is known.
        stale: entries that the code of today, or its models, would not give.
    """

    students: tuple[Student, ...]
    samples: tuple[int, ...]
    methods: tuple[str, ...]
    cells: Cells
    stale: Collection[Place] = ()

    def places(self) -> list[Place]:
        """Give the places of the table that have an entry, method by method."""
        every = itertools.product(self.methods, self.students, self.samples)
        return [
            p for p in dict.fromkeys(Place.of(*one) for one in every) if p in self.cells.entries
        ]

    def entry(self, method: str, student: Student, samples: int) -> Entry | None:
        """Give an entry if it is known."""
        return self.cells.entries.get(Place.of(method, student, samples))

    def markdown(self) -> str:
        """Give the table of accuracies in per cent, that of times, and the notes."""
        timed = [method for method in self.methods if method != "untouched"]
        times = _table(["student", "samples", *timed])
        for student, samples in itertools.product(self.students, self.samples):
            taken = [_seconds(self.entry(method, student, samples)) for method in timed]
            times.append(_row([_name(student), f"{samples:,}", *taken]))
        title = "Accuracy on the 10,000 test images of Fashion-MNIST, per cent"
        if self._draws() > 1:
            title += f"; mean of {self._draws()} draws of the samples, ± half their range"
        folded = ["<details><summary>CPU seconds, of all threads</summary>", "", *times, ""]
        shown = [f"{title}:", "", *self.accuracies(), *self.notes(), "", *folded, "</details>", ""]
        return "\n".join(shown)

    def summary(self) -> str:
        """Give the accuracies of one number of samples."""
        (samples,) = self.samples
        title = (
            f"Accuracy on the 10,000 test images of Fashion-MNIST, per cent, {samples:,} samples;"
            f" mean of {self._draws()} draws of them, ± half their range:"
        )
        rows = [row.replace(f" {samples:,} |", "", 1) for row in self.accuracies()]
        rows[:2] = _table(["student", "teacher", *self.methods])
        return "\n".join([title, "", *rows, *self.notes(), ""])

    def accuracies(self) -> list[str]:
        """Give the rows of accuracies."""
        rows = _table(["student", "samples", "teacher", *self.methods])
        for student, samples in itertools.product(self.students, self.samples):
            teacher = self.cells.teachers.get(student.network)
            shown = "-" if teacher is None else f"{teacher:.1f}"
            found = [self._accuracy(Place.of(m, student, samples)) for m in self.methods]
            rows.append(_row([_name(student), f"{samples:,}", shown, *found]))
        return rows

    def _accuracy(self, place: Place) -> str:
        """Show the mean, half the range of the draws, and what is to be known of them."""
        entry = self.cells.entries.get(place)
        if entry is None:
            return "-"
        spread = f" ± {entry.half_range:.1f}" if entry.draws > 1 else ""
        marks = (" †" if entry.refused else "") + (" ‡" if place in self.stale else "")
        return f"{entry.accuracy:.1f}{spread}{marks}"

    def notes(self) -> list[str]:
        """Explain the marks."""
        places = self.places()
        refused = [f"- {p}: {self.cells.entries[p].refused}" for p in places]
        refused = [line for line, p in zip(refused, places, strict=True) if self._refused(p)]
        stale = [f"- {place}" for place in places if place in self.stale]
        lines = []
        for title, found in (
            ("† no student in one draw at least, the untouched one counts:", refused),
            ("‡ stale, measured before a change of the fit or with other models:", stale),
        ):
            if found:
                lines += ["", title, "", *found]
        return lines

    def _draws(self) -> int:
        return max((self.cells.entries[place].draws for place in self.places()), default=1)

    def _refused(self, place: Place) -> bool:
        return bool(self.cells.entries[place].refused)

    def verdicts(self) -> Iterator[str]:
        """Say of every goal whether it is met."""
        for goal in GOALS:
            if goal.student not in self.students or goal.method not in self.methods:
                continue
            what = f"{goal.method}, {_name(goal.student)}"
            what += f", {goal.samples} samples: gap to the teacher at most {goal.gap:.1f}"
            entry = self.entry(goal.method, goal.student, goal.samples)
            teacher = self.cells.teachers.get(goal.student.network)
            if entry is None or teacher is None:
                yield f"- open: {what}"
                continue
            gap = round(teacher - entry.accuracy, 2)
            yield f"- {'met' if gap <= goal.gap else 'MISSED'}: {what}, is {gap:.2f}"

    def promises(self) -> Iterator[str]:
        """Say how ``auto`` compares with its parts, and every fit with the untouched student.

        That is: the rows where they come out worst.
        """
        behind: dict[tuple[Student, int], float] = {}
        shown = [family for family in (*FAMILIES, "factors") if family in self.methods]
        for student, samples in itertools.product(self.students, self.samples):
            entries = [self.entry(method, student, samples) for method in (*shown, "auto")]
            means = _comparable([entry for entry in entries if entry is not None])
            if shown and len(means) == len(entries):
                *families, auto = means
                behind[student, samples] = max(families) - auto
        if behind:
            (student, samples), most = max(behind.items(), key=lambda item: item[1])
            most = round(most, 2)
            yield (
                f"- {'met' if most <= WORSE_THAN_A_FAMILY else 'MISSED'}: auto, at most "
                f"{WORSE_THAN_A_FAMILY} points behind the better family in each of {len(behind)} "
                f"rows, is at worst {most:.2f} ({' '.join(student)}, {samples} samples)"
            )
        gains = {
            place: self.cells.entries[place].accuracy - before.accuracy
            for place in self.places()
            if place.method in FITS and (before := self.entry("untouched", place.student, 0))
        }
        if gains:
            worst, least = min(gains.items(), key=lambda item: item[1])
            yield (
                f"- {'met' if least >= 0 else 'MISSED'}: in none of {len(gains)} entries worse than"
                f" the untouched student, gains at least {least:.2f} ({worst})"
            )


def _comparable(entries: Sequence[Entry]) -> list[float]:
    """Give means over the same draws, which differ by more than methods do; else nothing."""
    if len({entry.draws for entry in entries}) == 1:
        return [entry.accuracy for entry in entries]
    common = min((len(entry.known_draws) for entry in entries), default=0)
    return [float(np.mean(entry.known_draws[:common])) for entry in entries] if common else []


def _name(student: Student) -> str:
    return f"{NAMES[student.network]} `{student.recipe}`"


def _table(head: Sequence[str]) -> list[str]:
    return [_row(head), _row(["---"] * len(head))]


def _row(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _seconds(entry: Entry | None) -> str:
    known = entry is not None and entry.cpu_seconds is not None
    return f"{entry.cpu_seconds:.0f}" if entry is not None and known else "-"

"""Accuracy of recovered students: ``python -m tests.benchmarks.accuracy``, from the root.

Students of four networks on Fashion-MNIST are recovered from a few unlabelled training images, and
judged on the 10,000 test images, which are used for nothing else. Several draws of samples give a
mean and its spread. `tests.benchmarks.methods` lists the methods.

What has been measured is in ``docs/accuracy.json`` (`tests.benchmarks.cells`), from which the table
is made. An entry stays as it is until its method does something else (`tests.benchmarks.probes`) or
the models change; then it is measured anew, or marked as stale where ``--known`` says to measure
nothing. Every draw that is done is kept at once, so the table may be made piece by piece.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from models import zoo
from models.build import student_path, teacher_path
from tests.benchmarks.cells import (
    DECOMPOSED,
    METHODS,
    STUDENTS,
    WITHOUT_SAMPLES,
    Cells,
    Place,
    Student,
)
from tests.benchmarks.markers import write_between
from tests.benchmarks.methods import measure, teacher_accuracy
from tests.benchmarks.probes import outcome
from tests.benchmarks.table import Table

_ON_REQUEST = (
    *("factors", "select", "refine", "refine-1000", "augment", "sgd"),
    *("fine-tune-10", "distil-10"),
)
DEFAULT_METHODS = tuple(method for method in METHODS if method not in _ON_REQUEST)
DECOMPOSED_METHODS = ("untouched", "kernel", "factors", "auto", "refine", "gradient")
DECOMPOSED_SAMPLES = (50, 500)
DEFAULT_SAMPLES = (10, 50, 100, 500, 3000)
DEFAULT_DRAWS = 3
SUMMARY_METHODS = ("untouched", "paper", "pointwise", "auto", "fine-tune")
SUMMARY_SAMPLES = 500


def stale_places(cells: Cells) -> set[Place]:
    """Give the entries that would not come out like that today."""
    return {
        place
        for place in cells.entries
        if cells.is_stale(place, outcome(place.method, place.is_decomposed))
    }


def bring_up_to_date(cells: Cells, place: Place, draws: int) -> None:
    """Measure what an entry lacks, and keep each draw in the file.

    Args:
        cells: what is known, changed in place.
        place: the entry.
        draws: how many it should have.
    """
    _note_models(cells, place.student)
    wanted = 1 if place.method in WITHOUT_SAMPLES else draws
    now, known = outcome(place.method, place.is_decomposed), cells.entries.get(place)
    if known is not None and cells.is_stale(place, now):
        known = None
    if known is not None and known.draws < wanted and not known.known_draws:
        known = None  # no draw can be added to a mean of others
    for draw in range(known.draws if known else 0, wanted):
        print(f"{place}, draw {draw}:", end=" ", file=sys.stderr, flush=True)
        found = measure(place, draw)
        print(f"{found.accuracy:.2f} % {found.refused}", file=sys.stderr, flush=True)
        known = known.and_draw(found) if known else found
        cells.entries[place] = known = dataclasses.replace(
            known, outcome=cells.key_of(place.method, now), models=cells.models[place.student]
        )
        cells.save()


def _note_models(cells: Cells, wanted: Student) -> None:
    """Take down which models there are, and how good a new teacher is."""
    network = wanted.network
    teacher = teacher_path(network)
    for student in (*STUDENTS, *DECOMPOSED):
        if student.network == network and (student == wanted or student in cells.models):
            content = teacher.read_bytes() + student_path(*student).read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            if cells.models.get(student) != digest:
                cells.models[student] = digest
                cells.teachers[network] = teacher_accuracy(network)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accuracy", description="Accuracy of recovered students."
    )

    def several(of: Callable[[str], object]) -> Callable[[str], list[object]]:
        return lambda text: [of(part) for part in text.split(",")]

    parser.add_argument(
        "--networks",
        type=several(str),
        help="such as vgg16,resnet20-inner50: networks, or single students; default all",
    )
    parser.add_argument(
        "--decomposed", action="store_true", help="decomposed students instead of pruned ones"
    )
    parser.add_argument("--samples", type=several(int), help="such as 50,500")
    parser.add_argument(
        "--draws", type=int, default=DEFAULT_DRAWS, help="draws of the samples to measure"
    )
    parser.add_argument("--methods", type=several(str), help=f"of {','.join(METHODS)}")
    parser.add_argument("--known", action="store_true", help="measure nothing: show the file")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table between its markers, results"
    )
    parser.add_argument(
        "--section",
        metavar="NAME",
        help="markers to write between instead, for a part of the table",
    )
    parser.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help=f"write the rows of {SUMMARY_SAMPLES} samples between the markers, summary",
    )
    return parser.parse_args(arguments)


def _asked_for(given: argparse.Namespace) -> str:
    """Give the options that say which part of the table is shown, as they are typed."""
    names = ("networks", "samples", "methods")
    lists = {name: ",".join(map(str, getattr(given, name) or ())) for name in names}
    words = [f"--{name} {text}" for name, text in lists.items() if text]
    words += ["--decomposed"] if given.decomposed else []
    words += [f"--section {given.section}"] if given.section else []
    return "".join(f" {word}" for word in words)


def _chosen(networks: Sequence[str] | None, students: tuple[Student, ...]) -> tuple[Student, ...]:
    if networks is None:
        return students
    known = {name for student in students for name in (student.network, "-".join(student))}
    for name in networks:
        if name not in known:
            raise SystemExit(f"There is no '{name}'; there are {', '.join(sorted(known))}.")
    return tuple(s for s in students if {s.network, "-".join(s)} & set(networks))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = _arguments(arguments)
    torch.set_num_threads(zoo.THREADS)
    students = _chosen(given.networks, DECOMPOSED if given.decomposed else STUDENTS)
    usual = DECOMPOSED_METHODS if given.decomposed else DEFAULT_METHODS
    methods = tuple(given.methods or usual)
    samples = tuple(given.samples or (DECOMPOSED_SAMPLES if given.decomposed else DEFAULT_SAMPLES))
    cells = Cells.load()
    if given.known:
        measured = {place.student for place in cells.entries}
        students = tuple(student for student in students if student in measured)
    else:
        # Method by method, the cheap ones first.
        for one in itertools.product(sorted(methods, key=METHODS.index), students, samples):
            bring_up_to_date(cells, Place.of(*one), given.draws)
    stale = stale_places(cells)
    table = Table(students, samples, methods, cells, stale)
    text = table.markdown()
    print(text)
    print("\n".join(["Goals:", "", *table.verdicts(), *table.promises()]))
    command = "python -m tests.benchmarks.accuracy --known"
    if given.write is not None:
        asked = f"{command}{_asked_for(given)} --write {given.write}"
        section = given.section or ("decomposed" if given.decomposed else "results")
        write_between(given.write, section, f"{text}\nPrinted by `{asked}`.\n")
    if given.summary is not None:
        short = Table(STUDENTS, (SUMMARY_SAMPLES,), SUMMARY_METHODS, cells, stale)
        printed = f"{short.summary()}\nPrinted by `{command} --summary {given.summary}`.\n"
        write_between(given.summary, "summary", printed)


if __name__ == "__main__":
    main()

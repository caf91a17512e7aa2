"""Accuracy of recovered students: ``python -m tests.benchmarks.accuracy``, from the root.

Students of four networks on Fashion-MNIST are recovered from a few unlabelled training images, and
judged on the 10,000 test images, which are used for nothing else. Several draws of samples give a
mean and its spread. The methods:

===========  =====================================================================================
untouched    the pruned student as it is
paper        the published algorithm, `tests.benchmarks.paper`
pointwise    the paper's 1x1 adapters as this package fits them (``--adapter pointwise``)
kernel       kernel adapters aimed at the channels that the student kept
select       kernel adapters aimed at channels chosen anew
auto         the package as it comes, no option given
gradient     training on the same samples, `tests.benchmarks.gradient`
fine-tune    training on all 60,000 labels, `tests.benchmarks.gradient`
===========  =====================================================================================

Every cell is computed once and kept in the cache (`models.zoo.cache_folder`), under everything that
it depends on: the two model files, the settings, and the code, whose comments and docstrings do not
count. So the table may be made piece by piece, and in several processes.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import torch

from fskd_onnx import FitOptions, fit
from fskd_onnx.errors import FskdError
from fskd_onnx.matching.channels import match_models
from fskd_onnx.options import RunOptions
from fskd_onnx.passes import Canonicalize
from models import zoo
from models.build import student_path, teacher_path
from models.data import Split, draw_samples, load, normalise
from models.export import INPUT
from models.networks import Network
from models.prune import prune
from models.train import accuracy
from tests.benchmarks.gradient import FINE_TUNE_ALL, FewSample, fine_tune, train_few
from tests.benchmarks.paper import paper_fit

ROOT = Path(__file__).parents[2]


class Student(NamedTuple):
    """A student of the table.

    Attributes:
        network: a key of `models.zoo.TEACHERS`.
        recipe: one of the network's in `models.prune.recipes`.
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

NAMES = {
    "vgg16": "VGG-16",
    "resnet20": "ResNet-20",
    "densenet22": "DenseNet-22",
    "mobilenetv2": "MobileNetV2",
}

METHODS = ("untouched", "paper", "pointwise", "kernel", "select", "auto", "gradient", "fine-tune")

WITHOUT_SAMPLES = ("untouched", "fine-tune")
"""Methods that see no samples, so that one cell stands for every count and draw."""

OPTIONS = {
    "pointwise": FitOptions(adapter="pointwise"),
    "kernel": FitOptions(adapter="kernel", targets="kept"),
    "select": FitOptions(adapter="kernel", targets="select"),
    "auto": FitOptions(),
}
"""What the package is called with."""

DEFAULT_METHODS = tuple(method for method in METHODS if method != "select")
DEFAULT_SAMPLES = (10, 50, 100, 500, 3000)
DEFAULT_DRAWS = 3
FAMILIES = ("pointwise", "kernel")
FITS = (*FAMILIES, "select", "auto")
WORSE_THAN_A_FAMILY = 0.3
"""How many points ``auto`` may be worse than the better family, in any row."""

IRRELEVANT = {
    *("__init__", "block_map", "cli", "clock", "compare", "errors"),
    *("files", "preprocess", "progress", "report"),
    *("decouple", "drop_block", "low_rank", "prune"),
}
"""Modules of the package and its passes that cannot change a fit of arrays; others may."""

MATCHING = ("match", "pairing", "alignment", "skeleton", "fields", "slices", "rows", "spaces")
CANONICAL = ("canonicalize", "fold_affine", "fold_constants", "linear", "nodes", "shapes", "stored")
"""Modules that tell blocks and channels."""

_EVALUATION_BATCH = 500


class Goal(NamedTuple):
    """A gap to the teacher, in points of accuracy, that a method should not exceed."""

    method: str
    student: Student
    samples: int
    gap: float


GOALS = (
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
    Goal("auto", Student("resnet20", "inner50"), 50, 1.4),
    Goal("auto", Student("resnet20", "inner75"), 50, 5.2),
    Goal("auto", Student("resnet20", "stream50"), 50, 4.5),
)
"""What the project has set itself, after prototypes on teachers of their own."""


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        accuracy: on the test images, 0..1.
        seconds: that the method took, reading files included and the test images not.
        cpu_seconds: the same, of all threads, while they ran; on a busy machine what counts.
        note: why there is no recovered student, whose accuracy is then that of the untouched one;
            else what is worth knowing.
        failed: whether there is none.
    """

    accuracy: float
    seconds: float
    cpu_seconds: float | None = None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Measurement:
    """What to measure.

    Attributes:
        method: one of `METHODS`.
        student: one of `STUDENTS`.
        samples: how many; 0 for `WITHOUT_SAMPLES`.
        draw: which; 0 for `WITHOUT_SAMPLES`.
    """

    method: str
    student: Student
    samples: int
    draw: int

    @staticmethod
    def of(method: str, student: Student, samples: int, draw: int) -> Measurement:
        """Make one; for `WITHOUT_SAMPLES` the samples do not matter."""
        blind = method in WITHOUT_SAMPLES
        return Measurement(method, student, 0 if blind else samples, 0 if blind else draw)

    @property
    def key(self) -> dict[str, object]:
        """Everything that the result depends on."""
        return {
            "method": self.method,
            "network": self.student.network,
            "recipe": self.student.recipe,
            "samples": self.samples,
            "draw": self.draw,
            "teacher": _digest(teacher_path(self.student.network)),
            "student": _digest(student_path(*self.student)),
            "settings": _settings(self.method),
            "sources": _sources(self.method),
        }

    @property
    def path(self) -> Path:
        """Where the cell is kept."""
        text = json.dumps(self.key, sort_keys=True)
        return _folder() / f"{self._stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    @property
    def older(self) -> list[Path]:
        """The cells of the same name, measured with any code and any settings; newest first."""
        found = _folder().glob(f"{self._stem}-*.json")
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    @property
    def _stem(self) -> str:
        return f"{self.method}-{'-'.join(self.student)}-{self.samples}-{self.draw}"


def cached(wanted: Measurement, any_code: bool = False) -> Cell | None:
    """Give a cell if it is there.

    Args:
        wanted: which.
        any_code: the newest one will do, whatever code it was measured with.
    """
    paths = [wanted.path, *(wanted.older if any_code else [])]
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else Cell(**json.loads(path.read_text())["cell"])


def measure(wanted: Measurement) -> Cell:
    """Give a cell, from the cache or by measuring it."""
    found = cached(wanted)
    if found is not None:
        return found
    path, key = wanted.path, wanted.key  # before the code may change under a long measurement
    print(" ".join((wanted.method, *wanted.student)), end=" ", file=sys.stderr)
    print(f"{wanted.samples} samples, draw {wanted.draw}:", end=" ", file=sys.stderr, flush=True)
    cell = _run(wanted)
    print(f"{cell.accuracy:.2%} {cell.seconds:.1f} s {cell.note}", file=sys.stderr, flush=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "cell": dataclasses.asdict(cell)}, indent=1))
    partial.replace(path)
    return cell


def _run(wanted: Measurement) -> Cell:
    test = _data("test")
    teacher, student = teacher_path(wanted.student.network), student_path(*wanted.student)
    match wanted.method:
        case "untouched":
            return Cell(onnx_accuracy(onnx.load(student), test), 0.0)
        case "fine-tune":
            return _timed(lambda: (fine_tune(_pair(wanted.student)[1], _data("train")), ""))
    images = draw_samples(_data("train").images, wanted.samples, wanted.draw)
    try:
        match wanted.method:
            case "gradient":
                return _timed(lambda: _train(wanted, images))
            case "paper":
                return _timed(lambda: (paper_fit(teacher, student, normalise(images)), ""))
            case method:
                options = OPTIONS[method]
                return _timed(lambda: (fit(teacher, student, normalise(images), options).model, ""))
    except (FskdError, np.linalg.LinAlgError) as error:
        untouched = onnx_accuracy(onnx.load(student), test)
        # Where the cache is, is of no interest to a reader of the table.
        note = str(error).replace(f"{student.parent}/", "")
        return Cell(untouched, 0.0, note=note, failed=True)


def _timed(recover: Callable[[], tuple[Network | onnx.ModelProto, str]]) -> Cell:
    start, cpu_start = time.perf_counter(), time.process_time()
    recovered, note = recover()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if isinstance(recovered, onnx.ModelProto):
        found = onnx_accuracy(recovered, _data("test"))
    else:
        found = accuracy(recovered, _data("test"))
    return Cell(found, seconds, cpu_seconds, note)


def _train(wanted: Measurement, images: npt.NDArray[np.uint8]) -> tuple[Network, str]:
    teacher, student = _pair(wanted.student)
    files = (teacher_path(wanted.student.network), student_path(*wanted.student))
    graphs = [gs.import_onnx(Canonicalize()(onnx.load(path)).model) for path in files]
    pairs = match_models(*graphs).usable
    # Values carry the name of their module; the classifier's are the logits.
    channels = {str(pair.teacher): pair.channels or () for pair in pairs if pair.op == "Conv"}
    trained = train_few(teacher, student, channels, images, seed=wanted.draw)
    return trained.network, f"rate {trained.rate:g}"


def onnx_accuracy(model: onnx.ModelProto, data: Split) -> float:
    """Give the fraction of images whose largest logit is that of the label, 0..1."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = [
        np.asarray(session.run(None, {INPUT: normalise(part)})[0]).argmax(1)
        for part in np.array_split(data.images, max(1, len(data.images) // _EVALUATION_BATCH))
    ]
    return float(np.mean(np.concatenate(found) == data.labels))


@functools.cache
def teacher_accuracy(network: str) -> float:
    """Give the accuracy of a teacher on the test images, kept in the cache."""
    source = teacher_path(network)
    path = _folder() / f"teacher-{network}-{_digest(source)[:16]}.json"
    if not path.is_file():
        path.write_text(json.dumps(onnx_accuracy(onnx.load(source), _data("test"))))
    return float(json.loads(path.read_text()))


@functools.cache
def _data(split: str) -> Split:
    return load(split)


@functools.cache
def _pair(student: Student) -> tuple[Network, Network]:
    teacher = zoo.teacher(student.network)
    return teacher, prune(teacher, student.recipe)


def _folder() -> Path:
    folder = zoo.cache_folder() / "accuracy"
    folder.mkdir(exist_ok=True)
    return folder


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _settings(method: str) -> object:
    match method:
        case "untouched" | "paper":
            return None
        case "gradient":
            return [dataclasses.asdict(FewSample()), torch.__version__]
        case "fine-tune":
            return [dataclasses.asdict(FINE_TUNE_ALL), torch.__version__]
        case _:
            options = OPTIONS[method]
            # The defaults of reading files do not matter to arrays.
            return [options.adapter, options.targets, options.run == RunOptions()]


@functools.cache
def _sources(method: str) -> str:
    """Give a digest of the code that a method runs, without comments and docstrings."""
    benchmarks, package, passes = ROOT / "tests" / "benchmarks", ROOT / "fskd_onnx", ROOT / "passes"
    match method:
        case "untouched":
            paths = []
        case "paper":
            paths = [benchmarks / "paper.py", *(package / f"{name}.py" for name in MATCHING)]
            paths += [passes / f"{name}.py" for name in CANONICAL]
        case "gradient" | "fine-tune":
            paths = [benchmarks / "gradient.py", ROOT / "models" / "train.py"]
        case _:
            paths = [path for path in package.glob("*.py") if path.stem not in IRRELEVANT]
            paths += [path for path in passes.glob("*.py") if path.stem not in IRRELEVANT]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(code_of(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def code_of(source: str) -> str:
    """Give what a module does: its syntax tree without docstrings, comments and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@dataclass(frozen=True)
class Table:
    """The cells that are known, and how they are shown.

    Attributes:
        students: the rows, in order.
        samples: a row of each student for each count.
        methods: the columns.
        draws: how many cells make one entry.
        cells: what is known.
    """

    students: tuple[Student, ...]
    samples: tuple[int, ...]
    methods: tuple[str, ...]
    draws: int
    cells: Mapping[Measurement, Cell]

    def entry(self, method: str, student: Student, samples: int) -> list[Cell]:
        """Give the cells of one entry, those that are known, one per draw."""
        wanted = {Measurement.of(method, student, samples, draw) for draw in range(self.draws)}
        return [cell for one, cell in self.cells.items() if one in wanted]

    def markdown(self) -> str:
        """Give the table of accuracies in per cent, then that of times."""
        timed = [method for method in self.methods if method != "untouched"]
        accuracies = _table(["student", "samples", "teacher", *self.methods])
        times = _table(["student", "samples", *timed])
        for student in self.students:
            teacher = f"{100 * teacher_accuracy(student.network):.1f}"
            for samples in self.samples:
                front = [f"{NAMES[student.network]} `{student.recipe}`", f"{samples:,}"]
                found = [self.entry(method, student, samples) for method in self.methods]
                taken = [self.entry(method, student, samples) for method in timed]
                accuracies.append(_row([*front, teacher, *map(_accuracy, found)]))
                times.append(_row([*front, *map(_seconds, taken)]))
        title = "Accuracy on the 10,000 test images of Fashion-MNIST, per cent"
        if self.draws > 1:
            title += f"; mean of {self.draws} draws of the samples, ± half their range"
        folded = ["<details><summary>CPU seconds, of all threads</summary>", "", *times, ""]
        return "\n".join([f"{title}:", "", *accuracies, "", *folded, "</details>", ""])

    def verdicts(self) -> Iterator[str]:
        """Say of every goal whether it is met."""
        for goal in GOALS:
            if goal.student not in self.students or goal.method not in self.methods:
                continue
            entry = self.entry(goal.method, goal.student, goal.samples)
            what = f"{goal.method}, {NAMES[goal.student.network]} `{goal.student.recipe}`"
            what += f", {goal.samples} samples: gap to the teacher at most {goal.gap:.1f}"
            if not entry:
                yield f"- open: {what}"
                continue
            gap = round(100 * (teacher_accuracy(goal.student.network) - _mean(entry)), 2)
            yield f"- {'met' if gap <= goal.gap else 'MISSED'}: {what}, is {gap:.2f}"

    def promises(self) -> Iterator[str]:
        """Say how ``auto`` compares with its parts, and every fit with the untouched student.

        That is: the rows and draws where they come out worst.
        """
        behind: dict[tuple[Student, int], float] = {}
        for student, samples in itertools.product(self.students, self.samples):
            methods = (*FAMILIES, "auto")
            by_draw = [
                [self.cells.get(Measurement.of(m, student, samples, draw)) for m in methods]
                for draw in range(self.draws)
            ]
            # Draws differ by more than methods do, so only those count that all were measured on.
            rows = [[c.accuracy for c in row if c is not None] for row in by_draw if all(row)]
            if rows:
                *families, auto = np.mean(rows, axis=0)
                behind[student, samples] = float(max(families) - auto)
        if behind:
            (student, samples), most = max(behind.items(), key=lambda item: item[1])
            most = round(100 * most, 2)
            yield (
                f"- {'met' if most <= WORSE_THAN_A_FAMILY else 'MISSED'}: auto, at most "
                f"{WORSE_THAN_A_FAMILY} points behind the better family in each of {len(behind)} "
                f"rows, is at worst {most:.2f} ({' '.join(student)}, {samples} samples)"
            )
        gains = {
            wanted: cell.accuracy - _mean(before)
            for wanted, cell in self.cells.items()
            if wanted.method in FITS and (before := self.entry("untouched", wanted.student, 0))
        }
        if gains:
            worst, least = min(gains.items(), key=lambda item: item[1])
            yield (
                f"- {'met' if least >= 0 else 'MISSED'}: in none of {len(gains)} fits worse than "
                f"the untouched student, gains at least {100 * least:.2f} ({worst.method}, "
                f"{' '.join(worst.student)}, {worst.samples} samples, draw {worst.draw})"
            )

    def notes(self) -> Iterator[str]:
        """Say where a method gave no student."""
        for wanted, cell in self.cells.items():
            if cell.failed:
                where = f"{' '.join(wanted.student)}, {wanted.samples} samples, draw {wanted.draw}"
                yield f"- {wanted.method}, {where}: {cell.note}"


def _table(head: Sequence[str]) -> list[str]:
    return [_row(head), _row(["---"] * len(head))]


def _row(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _mean(entry: Sequence[Cell]) -> float:
    return float(np.mean([cell.accuracy for cell in entry]))


def _accuracy(entry: Sequence[Cell]) -> str:
    """Show the mean, half the range of the draws, and a dagger where a draw gave no student."""
    if not entry:
        return "-"
    found = [100 * cell.accuracy for cell in entry]
    spread = f" ± {(max(found) - min(found)) / 2:.1f}" if len(found) > 1 else ""
    return f"{np.mean(found):.1f}{spread}{' †' if any(cell.failed for cell in entry) else ''}"


def _seconds(entry: Sequence[Cell]) -> str:
    taken = [cell.cpu_seconds for cell in entry if cell.cpu_seconds is not None]
    return f"{np.mean(taken):.0f}" if taken else "-"


def readme_block(table: Table, cached_only: bool = False) -> str:
    """Give what stands in the README between the markers."""
    command = f"python -m tests.benchmarks.accuracy --readme README.md --draws {table.draws}"
    if cached_only:
        command += " --cached-only"
    return f"{table.markdown()}\nPrinted by `{command}`.\n"


def write_readme(path: Path, block: str, marker: str = "results") -> None:
    """Replace what stands between the markers.

    Args:
        path: the file.
        block: what to put there.
        marker: name of the markers, two comments of HTML.

    Raises:
        ValueError: the file does not have one pair of markers.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{path}: there is not one pair of {marker} markers")
    path.write_text(pattern.sub(lambda found: found[1] + block + found[2], text), encoding="utf-8")


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
    parser.add_argument("--samples", type=several(int), help="such as 50,500")
    parser.add_argument("--draws", type=int, default=DEFAULT_DRAWS, help="draws of the samples")
    parser.add_argument("--methods", type=several(str), help=f"of {','.join(METHODS)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table, Markdown")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="write the table between its markers"
    )
    parser.add_argument(
        "--cached-only", action="store_true", help="measure nothing; what is not known is '-'"
    )
    parser.add_argument(
        "--any-code",
        action="store_true",
        help="with --cached-only: also show what was measured with other code or settings",
    )
    return parser.parse_args(arguments)


def _chosen(networks: Sequence[str] | None) -> tuple[Student, ...]:
    if networks is None:
        return STUDENTS
    known = {name for student in STUDENTS for name in (student.network, "-".join(student))}
    for name in networks:
        if name not in known:
            raise SystemExit(f"There is no '{name}'; there are {', '.join(sorted(known))}.")
    return tuple(s for s in STUDENTS if {s.network, "-".join(s)} & set(networks))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = _arguments(arguments)
    torch.set_num_threads(zoo.THREADS)
    table = Table(
        students=_chosen(given.networks),
        samples=tuple(given.samples or DEFAULT_SAMPLES),
        methods=tuple(given.methods or DEFAULT_METHODS),
        draws=given.draws,
        cells={},
    )
    cells: dict[Measurement, Cell] = {}
    # Method by method, the cheap ones first.
    for method in sorted(table.methods, key=METHODS.index):
        for student in table.students:
            for samples in table.samples:
                for draw in range(table.draws):
                    wanted = Measurement.of(method, student, samples, draw)
                    known = cached(wanted, given.any_code) if given.cached_only else None
                    cell = known if given.cached_only else measure(wanted)
                    if cell is not None:
                        cells[wanted] = cell
    table = dataclasses.replace(table, cells=cells)
    text = table.markdown()
    goals = [*table.verdicts(), *table.promises()]
    for title, found in (("Goals", goals), ("†: no student", list(table.notes()))):
        if found:
            text += "\n".join(["", f"{title}:", "", *found, ""])
    print(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    if given.readme is not None:
        write_readme(given.readme, readme_block(table, given.cached_only))


if __name__ == "__main__":
    main()

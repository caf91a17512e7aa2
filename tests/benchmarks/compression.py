"""Students that ``compress`` makes: ``python -m tests.benchmarks.compression``, from the root.

Teachers are those of `tests.benchmarks.accuracy`; the students are made from them and from a few
unlabelled training images, and judged on the 10,000 test images, which are used for nothing else.
``uniform`` is the reference that a choice has to beat: the same fraction of channels everywhere.
Students of other tools, `tests.benchmarks.rivals`, are fitted like all others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx import CompressOptions, compress, fit
from fskd_onnx.compress_options import MethodName
from fskd_onnx.compress_results import CompressResult, Plan, UnitKind, UnitPlan
from fskd_onnx.compression.plan import plan_to_json
from fskd_onnx.errors import FskdError
from models.build import teacher_path
from models.data import draw_samples, load, normalise
from tests.benchmarks.markers import write_between
from tests.benchmarks.methods import onnx_accuracy, teacher_accuracy
from tests.benchmarks.rivals import RIVALS, macs, rival_student

KNOWN = Path(__file__).parents[2] / "docs" / "compression.json"
UNIFORM = "uniform"
DROP = "drop"
_STEPS = 12
_PRINTED = "Printed by `python -m tests.benchmarks.compression --known`.\n"


@dataclass(frozen=True)
class Row:
    """A student.

    Attributes:
        network: its teacher.
        reduce: as the option of the command line has it, or ``drop=PERCENT`` for ``--max-drop``.
        method: likewise, with ``*2`` behind it in two rounds, or `UNIFORM`, or one of `RIVALS`.
        samples: how many images there were.
        teacher: accuracy of the teacher, per cent.
        bare: of the student before its fit; of a rival's, after what the rival does for it.
        fitted: of the fitted student.
        macs: what is left of the teacher's multiply-adds, per cent.
        parameters: of its parameters.
        latency: of the time of one run, measured in turns with the teacher.
        cpu_seconds: of the whole call.
        refused: why there is no student.
    """

    network: str
    reduce: str
    method: str
    samples: int
    teacher: float
    bare: float | None = None
    fitted: float | None = None
    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    cpu_seconds: float | None = None
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Return what tells rows apart."""
        return self.network, self.reduce, self.method, self.samples


def measure(network: str, reduce: str, method: str, samples: int) -> Row:
    """Make a student and judge it."""
    path, test = teacher_path(network), load("test")
    images = normalise(draw_samples(load("train").images, samples, 0))
    row = Row(network, reduce, method, samples, teacher=round(teacher_accuracy(network), 2))
    start = time.process_time()
    if method in RIVALS:
        bare = rival_student(method, network, _left(reduce), images)
        fitted = fit(path, bare, images).model
        return replace(
            row,
            bare=round(onnx_accuracy(bare, test), 2),
            fitted=round(onnx_accuracy(fitted, test), 2),
            macs=_percent(macs(fitted) / macs(onnx.load(path))),
            cpu_seconds=round(time.process_time() - start, 1),
        )
    name, _, rounds = method.partition("*")
    try:
        if method == UNIFORM:
            result = _uniform(path, images, reduce)
        else:
            if reduce.partition("=")[0] == DROP:
                asked = CompressOptions(methods=(method,), max_drop=1 - _left(reduce))
            else:
                asked = CompressOptions(methods=(name,), reduce=reduce, rounds=int(rounds or 1))
            result = compress(path, images, asked)
    except FskdError as error:
        text = str(error).replace(f"{path.parent}/", "")
        return replace(row, refused=text)
    seconds = time.process_time() - start
    assert result.model is not None
    totals = result.report.totals
    return replace(
        row,
        # The plan of several rounds is not one of the teacher.
        bare=None if rounds else round(onnx_accuracy(_bare(path, result.plan), test), 2),
        fitted=round(onnx_accuracy(result.model, test), 2),
        macs=_percent(totals.macs.ratio),
        parameters=_percent(totals.parameters.ratio),
        latency=_percent(totals.latency.ratio),
        cpu_seconds=round(seconds, 1),
    )


def _bare(teacher: Path, plan: Plan) -> onnx.ModelProto:
    """Return the student of a plan before its fit."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(plan_to_json(plan))
        found = compress(teacher, None, CompressOptions(plan=str(file), no_fit=True)).model
    assert found is not None
    return found


def _uniform(teacher: Path, images: NDArray[np.float32], reduce: str) -> CompressResult:
    """Compress with the same fraction of channels in all units, by bisection."""
    what, wanted = reduce.partition("=")[0], _left(reduce)
    dry = CompressOptions(reduce="macs=1%", methods=(MethodName.L1,), dry_run=True)
    units = compress(teacher, None, dry).plan.units
    low, high = 0.0, 1.0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"

        def write(fraction: float) -> CompressOptions:
            changed = [_narrowed(unit, fraction) for unit in units]
            file.write_text(plan_to_json(Plan(str(teacher), tuple(changed))))
            return CompressOptions(plan=str(file), dry_run=True)

        for _ in range(_STEPS):
            middle = (low + high) / 2
            totals = compress(teacher, None, write(middle)).report.totals
            ratio = (totals.parameters if what == "params" else totals.macs).ratio or 1.0
            low, high = (middle, high) if ratio <= wanted else (low, middle)
        write(low)
        return compress(teacher, images, CompressOptions(plan=str(file)))


def _narrowed(unit: UnitPlan, fraction: float) -> UnitPlan:
    """Return a unit of width with a fraction of its channels, and any other one whole."""
    width = unit.before[0] if unit.before else 0
    after = max(1, round(fraction * width))
    if unit.kind != UnitKind.WIDTH or unit.reason or after >= width:
        return UnitPlan(unit.unit, unit.kind, "", unit.before, unit.before)
    return UnitPlan(unit.unit, unit.kind, MethodName.L1, unit.before, (after,))


def _left(reduce: str) -> float:
    """Return what is to be left of a cost, 0..1."""
    return 1 - float(reduce.partition("=")[2].rstrip("%")) / 100


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else round(100 * ratio, 1)


def _read() -> dict[tuple[str, str, str, int], Row]:
    rows = [Row(**row) for row in json.loads(KNOWN.read_text())] if KNOWN.exists() else []
    return {row.key: row for row in rows}


def _save(rows: Iterable[Row]) -> None:
    lines = ",\n ".join(json.dumps(asdict(row)) for row in rows)
    KNOWN.write_text(f"[\n {lines}\n]\n")


def table(rows: Iterable[Row]) -> str:
    """Return rows as a table in Markdown."""
    head = "| network | taken off | method | samples | teacher | bare | fitted | gap |"
    more = " macs left % | parameters left % | time left % | CPU s |"
    lines = [head + more, "|" + " --- |" * 12]
    rows = sorted(rows, key=lambda row: (row.network, -row.samples, row.reduce))
    for row in rows:
        cells: list[object] = [row.network, row.reduce, row.method, row.samples, row.teacher]
        if row.refused:
            lines.append("| " + " | ".join(map(str, [*cells, *["-"] * 7])) + " |")
            continue
        gap = round(row.teacher - (row.fitted or 0.0), 2)
        cells += [row.bare, row.fitted, gap, row.macs, row.parameters, row.latency]
        shown = ["-" if cell is None else cell for cell in [*cells, row.cpu_seconds]]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    reasons = (
        f"- {row.network}, {row.reduce}, {row.method}: {row.refused}" for row in rows if row.refused
    )
    refused = list(dict.fromkeys(reasons))
    return "\n".join([*lines, "", *refused, ""]) if refused else "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not known, and show or write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.compression", description="Students made by compress."
    )
    parser.add_argument("--networks", default="resnet20", help="by commas")
    parser.add_argument("--reduce", default="macs=50%", help="by commas")
    parser.add_argument(
        "--methods", default="auto", help=f"by commas; also {UNIFORM}, {', '.join(RIVALS)}"
    )
    parser.add_argument("--samples", default="500", help="by commas")
    parser.add_argument("--known", action="store_true", help="measure nothing: show the file")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table between its markers"
    )
    given = parser.parse_args(arguments)
    rows = _read()
    wanted = [
        (network, reduce, method, int(samples))
        for network in given.networks.split(",")
        for samples in given.samples.split(",")
        for reduce in given.reduce.split(",")
        for method in given.methods.split(",")
    ]
    for key in () if given.known else wanted:
        rows[key] = measure(*key)
        _save(rows.values())
        print(table([rows[key]]), flush=True)
    text = table(rows.values())
    if given.write is not None:
        write_between(given.write, "compression", f"{text}\n{_PRINTED}")
    elif given.known:
        print(text)


if __name__ == "__main__":
    main()

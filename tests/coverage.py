"""What a fit makes of every form of a graph: ``python -m tests.coverage --write``.

Prints the tables of ``COVERAGE.md``, or writes them there. It takes minutes: graphs of the model
zoo are as wide as they are. ``test_coverage.py`` runs the same fits with a quarter of these widths,
checks what has to hold of each, and compares every row with the document.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from fskd_onnx import FitOptions, FitResult, RunOptions, fit
from fskd_onnx.errors import FskdError
from fskd_onnx.passes import Canonicalize, FoldConstants
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.forms import GROUPS, Form, zoo
from tests.helpers import Array, assert_close, check, initializers, linears, run

DOCUMENT = Path(__file__).with_name("COVERAGE.md")

_HEAD = """# Coverage

What `fskd-onnx fit` makes of graphs as exporters, converters and other tools write them. Each row
is a small network and its student, which is the same graph with noise on its weights (of the model
zoo: the graphs that the `onnx` package carries, with random weights). `fitted` counts the nodes
whose error went down, `folded` those that merged into others; each node with weights that was left
as it was is named with the reason that the report gives. For every row that was fitted, the error
of the network's output against the teacher goes down, the fused file passes the checker and runs
in ONNX Runtime, OpenVINO gives the same outputs, and what was not fitted survives byte for byte.
`tests/serialization/test_external_data.py` fits a model of more than 2 GB.

Printed by `python -m tests.coverage`, with the model zoo's graphs as wide as they are;
`tests/test_coverage.py` checks every row, with a quarter of their widths.
"""
_COLUMNS = "| form | fitted | folded | left alone |\n|---|---|---|---|"


def fit_form(form: Form) -> FitResult:
    """Fit a form's student on its samples."""
    teacher, student = form.pair()
    options = FitOptions(RunOptions(providers=("cpu",)), adapter=form.adapter)
    return fit(teacher, student, form.samples(seed=5), options)


def row(name: str, form: Form, result: FitResult | None) -> str:
    """Return the line of a form; of one that was refused without a result."""
    if result is None:
        return f"| {name} | - | - | refused: {form.fails} |"
    blocks = result.report.blocks
    fitted = Counter(block.op for block in blocks if block.status == "fitted")
    alone = [f"`{b.student}` ({b.op}): {b.reason}" for b in blocks if b.status == "kept"]
    gone = _ops(form.pair()[1])
    gone.subtract(_ops(result.model))
    folded = {op: n for op, n in gone.items() if n > 0}
    cells = [_counted(fitted), _counted(folded), "; ".join(alone) or "-"]
    return f"| {name} | {' | '.join(cells)} |"


def document() -> str:
    """Fit all forms, the model zoo's with all of their widths, and return the whole document."""
    parts = [_HEAD]
    for group, forms in {**GROUPS, "Model zoo": zoo(divisor=1)}.items():
        rows = [_row_of(name, form) for name, form in forms.items()]
        parts.append("\n".join([f"## {group}\n", _COLUMNS, *rows]) + "\n")
    return "\n".join(parts)


def assert_sound(form: Form, result: FitResult) -> None:
    """Check what holds of every fit: errors go down, and what was not fitted survives."""
    teacher, student = form.pair()
    report, fused = result.report, result.model
    assert report.after.relative_mse < report.before.relative_mse
    for block in report.blocks:
        assert (block.status == "kept") == bool(block.reason)
        if block.error_before is not None and block.error_after is not None:
            assert block.error_after <= block.error_before, block.student
    check(fused)
    size = fixed_batch_size(input_specs(teacher))
    feeds = {name: value[:size] for name, value in form.samples(seed=77).items()}
    target, before, after = (run(model, feeds) for model in (teacher, student, fused))
    assert _error(after, target) < _error(before, target)
    canonical = Canonicalize()(student).model
    assert_close(run(canonical, feeds), before)
    assert_survives(result, student, canonical)


def assert_survives(
    result: FitResult, student: onnx.ModelProto, canonical: onnx.ModelProto
) -> None:
    """Check the envelope, the nodes, and the bytes of everything that was not fitted."""
    fused = result.model
    for part in ("ir_version", "opset_import", "functions", "metadata_props", "producer_name"):
        assert getattr(fused, part) == getattr(student, part)
    assert fused.graph.output == student.graph.output
    given = set(initializers(student)) | set(initializers(fused))
    assert [i for i in fused.graph.input if i.name not in given] == [
        i for i in student.graph.input if i.name not in given
    ]
    fitted = {b.student for b in result.report.blocks if b.status == "fitted"}
    views = [view for name, view in linears(canonical).items() if name in fitted]
    constants = (c for view in views for c in (view.weight, view.bias_constant))
    changed = {constant.name for constant in constants if constant is not None}
    # A parameter that no fit has changed is computed as it was in the student.
    folded = FoldConstants()(fused).model
    stored = {tensor.name: tensor for tensor in folded.graph.initializer}
    for tensor in canonical.graph.initializer:
        same = stored[tensor.name].SerializeToString() == tensor.SerializeToString()
        assert same or tensor.name in changed, tensor.name
    now = {tensor.name: tensor for tensor in fused.graph.initializer}
    origin = {tensor.name: tensor for tensor in student.graph.initializer}
    for name, tensor in now.items():
        if name in origin and name not in changed:
            assert tensor.SerializeToString() == origin[name].SerializeToString(), name
    unbiased = {v.name for v in views if v.op == "MatMul" and v.bias_constant is None}
    added = result.report.added_nodes
    assert set(added) <= unbiased
    assert _ops(folded) == _ops(canonical) + Counter({"Add": len(added)} if added else {})


def _row_of(name: str, form: Form) -> str:
    try:
        return row(name, form, fit_form(form))
    except FskdError:
        if form.fails:
            return row(name, form, None)
        raise


def _ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(counts.items())) or "-"


def _error(outputs: dict[str, Array], target: dict[str, Array]) -> float:
    pairs = zip(outputs.values(), target.values(), strict=True)
    return sum(float(np.sum((a.astype(float) - b.astype(float)) ** 2)) for a, b in pairs)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(document(), encoding="utf-8")
    else:
        print(document())

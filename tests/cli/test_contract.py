"""The command line as its users call it: a process of its own, on the demo's files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from fskd_onnx.reporting.html_format import to_html
from tests.reports import read_report

DEMO = Path(__file__).parents[2] / "models" / "demo"
TEACHER, SAMPLES, TEST = DEMO / "teacher.onnx", DEMO / "samples", DEMO / "test.npz"
FEW = ("--preprocess", "fashion-mnist", "--max-samples", "56")
PRESETS = ("imagenet", "caffe", "inception", "raw", "unit", "fashion-mnist")

# Stable: a script that reads a report relies on all of them.
REPORT_KEYS = {
    "": "schema_version teacher student output options providers samples blocks end_to_end"
    " parameters seconds versions advice command",
    "samples": "count independent held_out worst",
    "end_to_end": "before after verdict",
    "end_to_end.before": "relative_mse top1_agreement",
    "end_to_end.after": "relative_mse top1_agreement",
    "end_to_end.verdict": "independent_count error_ratio interval stands doubt",
    "parameters": "student fused",
    "seconds": "total capture solve fuse verify",
}
BLOCK_KEYS = [
    "student",
    "teacher",
    "op",
    "adapter",
    "ridge",
    "channels",
    "error_before",
    "error_after",
    "status",
    "reason",
    "teacher_width",
    "evidence",
]


def fskd_onnx(*arguments: object, module: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the installed script, or the module, as a process of its own."""
    script = [str(Path(sys.executable).parent / "fskd-onnx")]
    start = [sys.executable, "-m", "fskd_onnx"] if module else script
    return subprocess.run(
        [*start, *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Give the lines on stderr that are not ONNX Runtime's own remarks on the machine."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if "onnxruntime:" not in line]


def assert_fails(done: subprocess.CompletedProcess[str], status: int, *parts: object) -> None:
    """Check for an exit status and one line on stderr that holds all parts."""
    (line,) = said(done)
    assert line.startswith("error: ")
    assert all(str(part) in line for part in parts), line
    assert done.returncode == status


def new_student(folder: Path, name: str = "student.onnx") -> Path:
    """Copy the demo's student and give it all that a file may say about itself."""
    model = onnx.load(DEMO / "student.onnx")
    model.doc_string, model.domain, model.model_version = "notes", "example.test", 7
    model.producer_version = "1.2"
    model.graph.doc_string = "the graph"
    model.metadata_props.add(key="licence", value="CC0")
    path = folder / name
    onnx.save_model(model, path)
    return path


class Fitted(NamedTuple):
    """A successful fit, with the student's bytes from before."""

    student: Path
    before: bytes
    report: Path
    done: subprocess.CompletedProcess[str]

    @property
    def output(self) -> Path:
        """Give the path that the command chooses on its own."""
        return self.student.with_name("student.fskd.onnx")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    folder = tmp_path_factory.mktemp("fitted")
    student, report = new_student(folder), folder / "report.json"
    before, teacher = student.read_bytes(), TEACHER.read_bytes()
    reports = ("--report", report, "--report", report.with_suffix(".html"))
    done = fskd_onnx("fit", TEACHER, student, SAMPLES, *FEW, *reports)
    yield Fitted(student, before, report, done)
    assert TEACHER.read_bytes() == teacher


def floats(model: onnx.ModelProto) -> int:
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


def test_fit_writes_its_default_output_and_leaves_the_student(fitted: Fitted) -> None:
    assert (fitted.done.returncode, said(fitted.done)) == (0, [])
    files = {path.name for path in fitted.student.parent.iterdir()}
    assert files == {"student.onnx", "student.fskd.onnx", "report.json", "report.html"}
    assert fitted.student.read_bytes() == fitted.before
    assert str(fitted.output) in "".join(fitted.done.stdout.split())  # long paths are wrapped


def test_the_fused_model_costs_no_more_than_the_student(fitted: Fitted) -> None:
    student, fused = onnx.load(fitted.student), onnx.load(fitted.output)
    onnx.checker.check_model(fused, full_check=True)
    assert len(fused.graph.node) <= len(student.graph.node)
    assert floats(fused) <= floats(student)
    assert 0 < multiply_adds(fused) <= multiply_adds(student)


def multiply_adds(model: onnx.ModelProto) -> int:
    """Count the products that Conv and Gemm form for one sample."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in inferred.initializer}
    return sum(
        sizes[node.input[1]] * int(np.prod(shapes[node.output[0]][2:]))
        for node in inferred.node
        if node.op_type in ("Conv", "Gemm")
    )


def test_all_that_was_not_fitted_survives(fitted: Fitted) -> None:
    student, fused = onnx.load(fitted.student), onnx.load(fitted.output)
    assert list(fused.graph.input) == list(student.graph.input)
    assert list(fused.graph.output) == list(student.graph.output)
    assert fused.graph.name == student.graph.name
    assert fused.graph.doc_string == "the graph"
    for model in (student, fused):
        model.ClearField("graph")
    assert fused == student


def test_the_report_has_the_stable_keys(fitted: Fitted) -> None:
    report = read_report(fitted.report)
    for path, keys in REPORT_KEYS.items():
        part = report
        for key in filter(None, path.split(".")):
            part = part[key]
        assert sorted(part) == sorted(keys.split()), path
    assert (report["teacher"], report["student"]) == (str(TEACHER), str(fitted.student))
    assert report["output"] == str(fitted.output)
    assert report["samples"]["count"] == 56
    assert all(Path(sample["name"]).is_file() for sample in report["samples"]["worst"])
    assert report["parameters"]["fused"] <= report["parameters"]["student"]
    ends = report["end_to_end"]
    assert ends["after"]["relative_mse"] < ends["before"]["relative_mse"]


def test_the_report_for_people_is_made_of_the_same_record(fitted: Fitted) -> None:
    record = read_report(fitted.report)
    assert fitted.report.with_suffix(".html").read_text(encoding="utf-8") == to_html(record)
    assert shlex.split(record["command"])[:4] == [
        "fskd-onnx",
        "fit",
        str(TEACHER),
        record["student"],
    ]


def test_the_report_has_a_line_for_every_linear_node(fitted: Fitted) -> None:
    blocks = read_report(fitted.report)["blocks"]
    nodes = onnx.load(fitted.student).graph.node
    linear = [node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert [block["student"] for block in blocks] == linear
    for block in blocks:
        assert list(block) == BLOCK_KEYS
        assert block["status"] in ("fitted", "kept", "replaced")
        assert (block["status"] != "fitted") == bool(block["reason"])


def test_the_same_call_gives_the_same_bytes(fitted: Fitted, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    done = fskd_onnx("fit", TEACHER, fitted.student, SAMPLES, *FEW, "-o", again, module=True)
    assert done.returncode == 0
    assert again.read_bytes() == fitted.output.read_bytes()


def test_a_student_that_is_its_teacher_cannot_be_improved(tmp_path: Path) -> None:
    student = tmp_path / "same.onnx"
    shutil.copyfile(TEACHER, student)
    report = tmp_path / "report.json"
    done = fskd_onnx("fit", TEACHER, student, SAMPLES, *FEW, "--report", report)
    assert_fails(done, 3, student)
    assert list(tmp_path.iterdir()) == [student]


@pytest.mark.parametrize("fault", ["broken", "missing", "not onnx", "no samples", "other input"])
def test_a_bad_input_is_one_line_that_names_it(tmp_path: Path, fault: str) -> None:
    student, samples = new_student(tmp_path), SAMPLES
    named = student
    if fault == "broken":
        student.write_bytes(student.read_bytes()[:-1000])
    elif fault == "missing":
        student.unlink()
    elif fault == "not onnx":
        student.write_text("a student", encoding="utf-8")
    elif fault == "no samples":
        samples = named = tmp_path / "nowhere"
    else:
        samples = named = tmp_path / "samples.npy"
        np.save(samples, np.zeros((20, 3, 5, 5), np.float32))
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "fused.onnx"
    done = fskd_onnx("fit", TEACHER, student, samples, *FEW[:2], "-o", output)
    assert_fails(done, 1, named)
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_images_without_a_normalisation_list_the_presets(tmp_path: Path) -> None:
    output = tmp_path / "fused.onnx"
    done = fskd_onnx("fit", TEACHER, DEMO / "student.onnx", SAMPLES, "-o", output)
    assert_fails(done, 1, "--preprocess", *PRESETS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["-o", "--report", "--log-file"])
def test_an_input_is_never_written_to(tmp_path: Path, option: str) -> None:
    named = tmp_path / "report.json"
    new_student(tmp_path).rename(named)
    before = named.read_bytes()
    done = fskd_onnx("fit", TEACHER, named, SAMPLES, *FEW, option, named)
    assert done.returncode == 2
    assert "is an input (STUDENT)" in " ".join(said(done))
    assert (list(tmp_path.iterdir()), named.read_bytes()) == ([named], before)


@pytest.mark.parametrize("stdout", ["closed pipe", "full disk"])
def test_who_does_not_read_the_results_changes_nothing(tmp_path: Path, stdout: str) -> None:
    output, report = tmp_path / "fused.onnx", tmp_path / "report.json"
    command = ["fit", TEACHER, DEMO / "student.onnx", SAMPLES, *FEW, "-o", output]
    if stdout == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "fskd_onnx", *map(str, command), "--report", report],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, said(done)) == (0, [])
    assert read_report(report)["output"] == str(output)
    onnx.checker.check_model(output, full_check=True)


def test_a_report_that_cannot_be_written_keeps_the_model_back(tmp_path: Path) -> None:
    student = new_student(tmp_path)
    reports = tmp_path / "reports"
    reports.mkdir()
    command = (
        "import sys, pathlib, fskd_onnx.reporting.json_format as j;"
        "write = pathlib.Path.write_text\n"
        "def fail(self, *rest, **more): raise OSError(28, 'No space left on device')\n"
        "pathlib.Path.write_text = fail\n"
        "from fskd_onnx.cli import main; main()"
    )
    options = (*FEW, "--report", reports / "r.json")
    done = subprocess.run(
        [sys.executable, "-c", command, "fit", TEACHER, student, SAMPLES, *options],
        capture_output=True,
        text=True,
    )
    assert_fails(done, 1, "r.json: cannot be written (No space left on device)")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["reports", "student.onnx"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--preprocess", "nonsense"), "fashion-mnist"),
        (("--max-samples", "0"), "--max-samples"),
        (("--nonsense",), "--nonsense"),
        (("one", "too", "many"), "many"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    output = tmp_path / "fused.onnx"
    student = DEMO / "student.onnx"
    done = fskd_onnx("fit", TEACHER, student, SAMPLES, "-o", output, *arguments)
    assert done.returncode == 2
    assert part in " ".join(said(done))
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_provider_is_used_or_refused_but_never_replaced(tmp_path: Path) -> None:
    """What CUDA comes to depends on the machine; either way it is said."""
    output, report = tmp_path / "fused.onnx", tmp_path / "report.json"
    options = (*FEW, "--providers", "CUDA,cpu", "-o", output, "--report", report)
    done = fskd_onnx("fit", TEACHER, DEMO / "student.onnx", SAMPLES, *options)
    if done.returncode == 0:
        providers = read_report(report)["providers"]
        assert providers[0] == "CUDAExecutionProvider"
        assert output.is_file()
    else:
        assert_fails(done, 1, "CUDA", "--providers cpu")
        assert list(tmp_path.iterdir()) == []


def test_a_provider_that_does_not_exist(tmp_path: Path) -> None:
    output = tmp_path / "fused.onnx"
    options = (*FEW, "--providers", "nonsense", "-o", output)
    done = fskd_onnx("fit", TEACHER, DEMO / "student.onnx", SAMPLES, *options)
    assert_fails(done, 1, "nonsense", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_match_prints_and_saves_the_pairs(tmp_path: Path) -> None:
    saved = tmp_path / "map.json"
    done = fskd_onnx("match", TEACHER, DEMO / "student.onnx", "--json", saved)
    assert (done.returncode, said(done)) == (0, [])
    assert "stages.0.0.conv1" in done.stdout
    assert "8/16" in done.stdout
    pairs = {
        pair["student"]: pair for pair in json.loads(saved.read_text(encoding="utf-8"))["pairs"]
    }
    assert len(pairs) == 22
    inner = pairs["stages.0.0.conv1"]
    assert inner["teacher"] == "stages.0.0.bn1"
    assert inner["teacher_width"] == 16
    assert len(set(inner["channels"])) == 8
    assert pairs["classifier"]["channels"] == list(range(10))
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_compare_without_labels_shows_agreement_only() -> None:
    done = fskd_onnx("compare", TEACHER, TEACHER, SAMPLES, *FEW)
    assert (done.returncode, said(done)) == (0, [])
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    facts = {name: fact.strip() for name, fact in facts.items()}
    assert facts == {
        "samples": "56",
        "relative mse": "0",
        "top-1 agreement": "100.0%",
        "top-5 agreement": "100.0%",
        "KL divergence": "0",
        "cosine": "1.00000",
    }


def test_compare_with_labels_shows_accuracies() -> None:
    done = fskd_onnx("compare", TEACHER, DEMO / "student.onnx", TEST, *FEW, "--labels", TEST)
    assert (done.returncode, said(done)) == (0, [])
    lines = [line.split() for line in done.stdout.splitlines()]
    percent = {line[0]: float(line[2].rstrip("%")) for line in lines if line[1] == "accuracy"}
    assert percent["teacher"] > 80 > percent["student"]


def test_compare_says_where_the_student_departs_and_how_long_it_takes(
    fitted: Fitted, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    options = ("--blocks", "--map", fitted.report, "--time", "--report", report)
    done = fskd_onnx("compare", TEACHER, fitted.output, TEST, *FEW, *options)
    assert (done.returncode, said(done)) == (0, [])
    record = read_report(report)
    of_fit = {block["student"]: block for block in read_report(fitted.report)["blocks"]}
    for block in record["blocks"]:
        assert block["channels"] == of_fit[block["student"]]["channels"]
        assert 0 <= block["error"] < 0.5
        assert block["student"] in done.stdout
    assert record["latency"]["ratio"] > 0
    assert f"{record['latency']['ratio']:.1%} of the teacher's" in done.stdout
    assert "departs at" in done.stdout


def test_a_map_of_a_comparison_is_for_its_blocks(tmp_path: Path) -> None:
    done = fskd_onnx("compare", TEACHER, TEACHER, TEST, *FEW, "--map", tmp_path / "m.json")
    assert done.returncode == 2
    assert "--map" in done.stderr
    assert "--blocks" in done.stderr


def test_compare_saves_reports(tmp_path: Path) -> None:
    reports = tmp_path / "r.json", tmp_path / "r.html"
    options = (*FEW, "--labels", TEST, "--report", reports[0], "--report", reports[1])
    done = fskd_onnx("compare", TEACHER, DEMO / "student.onnx", TEST, *options)
    assert (done.returncode, said(done)) == (0, [])
    record = read_report(reports[0])
    assert f"teacher accuracy  {record['accuracy']['teacher']:.1%}" in done.stdout
    assert record["samples"]["count"] == 56
    worst = [sample["error"] for sample in record["samples"]["worst"]]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] == record["error_quantiles"][-1]
    assert len(record["error_quantiles"]) == 21
    assert reports[1].read_text(encoding="utf-8") == to_html(record)

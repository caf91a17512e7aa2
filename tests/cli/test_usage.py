"""The command line without any model: help, usage errors, exit statuses, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from fskd_onnx.cli.app import app
from fskd_onnx.cli.help_page import _GROUP_OF, EXAMPLES
from fskd_onnx.errors import FskdError, NoImprovementError, SamplesError
from fskd_onnx.options import Preprocess, RunOptions
from fskd_onnx.reporting.formats import REPORT_FORMATS, ReportFormat
from fskd_onnx.results import (
    Agreement,
    BlockPair,
    Evidence,
    FitReport,
    Matching,
    StageSeconds,
    Verdict,
)
from fskd_onnx.samples.augment import MOVES
from fskd_onnx.samples.labels import LABEL_FORMATS
from fskd_onnx.serialization.atomic_files import OutputFiles

REPORT = FitReport(
    teacher="t.onnx",
    student="s.onnx",
    output=None,
    options={},
    providers=("cpu",),
    sample_count=5,
    independent_count=5,
    held_out_count=1,
    blocks=(),
    before=Agreement(relative_mse=1.0, top1_agreement=0.1),
    after=Agreement(relative_mse=0.1, top1_agreement=0.925),
    verdict=Verdict(5, 0.1, (0.05, 0.2), stands=True),
    parameters_student=1,
    parameters_fused=1,
    seconds=StageSeconds(total=1, capture=1, solve=0, fuse=0, verify=0),
    versions={},
)
MATCHING = Matching((BlockPair("conv1", "Conv", "t1", (0, 3), 8, Evidence.WEIGHTS, 0.9, ""),))
COMMANDS = ("fit", "match", "compare")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The command line sets up logging for a process of its own."""
    root, package = logging.getLogger(), logging.getLogger("fskd_onnx")
    handlers, level = root.handlers[:], package.level
    yield
    root.handlers[:] = handlers
    package.setLevel(level)
    logging.captureWarnings(False)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def compare_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[RunOptions], None]], None]:
    """Puts something in place of the comparison, which is the command with the least around it."""

    def replace(action: Callable[[RunOptions], None]) -> None:
        def compare(_t: Path, _s: Path, _x: Path, run: RunOptions, _: Any, **_more: Any) -> Any:
            action(run)
            raise SamplesError("samples.npy: stop here")

        install(monkeypatch, "fskd_onnx.pipeline.compare", compare=compare)

    return replace


def test_help_lists_the_commands_and_their_options() -> None:
    top = invoke("--help")
    assert top.exit_code == 0
    assert all(command in top.stdout for command in COMMANDS)
    shared = "providers max-samples batch-size seed preprocess mean std scale layout resize crop"
    options = [f"--{name}" for name in f"{shared} channel-order verbose quiet log-file".split()]
    for command in COMMANDS:
        result = invoke(command, "-h")
        assert result.exit_code == 0
        assert all(option in result.stdout for option in options)


def test_help_names_what_the_registries_hold() -> None:
    texts = {name: " ".join(invoke(name, "-h").stdout.split()) for name in COMMANDS}
    assert all(name in texts["fit"] for name in (*MOVES, *REPORT_FORMATS))
    assert all(suffix in texts["compare"] for suffix in LABEL_FORMATS)


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fskd-onnx ")
    (runtime,) = (line for line in lines if line.startswith("onnxruntime"))
    assert "CPUExecutionProvider" in runtime
    assert any(line.startswith("numpy ") for line in lines)


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_has_groups_of_options_and_an_example(command: str) -> None:
    text = invoke(command, "-h").stdout
    groups = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert groups[0] == "Arguments"
    assert groups[-4:] == ["Samples", "Running", "Output", "Example"]
    assert text.splitlines()[-1].strip() == EXAMPLES[command]
    assert EXAMPLES[command].startswith(f"fskd-onnx {command} ")


def test_every_grouped_option_exists() -> None:
    names = {parameter.name for name in EXAMPLES for parameter in command_of(name).params}
    assert set(_GROUP_OF) - names == {"help"}


def command_of(name: str) -> Any:
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def test_shells_complete_commands_and_options() -> None:
    for typed, found in (("fskd-onnx co", "compare"), ("fskd-onnx fit --ada", "--adapter")):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        done = subprocess.run(
            [Path(sys.executable).parent / "fskd-onnx"],
            env={**os.environ, **words, "_FSKD_ONNX_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
        )
        assert found in done.stdout.splitlines()


@pytest.mark.parametrize(
    "options",
    [
        ["--nonsense"],
        ["--max-samples", "0"],
        ["--batch-size", "none"],
        ["--seed", "-1"],
        ["--providers", "cuda,,cpu"],
        ["--preprocess", "nonsense"],
        ["--mean", "a,b,c"],
        ["--mean", "1,2"],
        ["--std", "0"],
        ["--scale", "-1"],
        ["--layout", "CHWN"],
        ["--resize", "4x5x6"],
        ["--crop", "0"],
        ["--channel-order", "RGGB"],
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_options_are_wrong_usage(command: str, options: list[str]) -> None:
    result = invoke(command, "teacher.onnx", "student.onnx", "samples", *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert options[0] in result.stderr or "Invalid value" in result.stderr


def test_wrong_usage_of_fit(tmp_path: Path) -> None:
    assert invoke("fit", "teacher.onnx").exit_code == 2
    files = (tmp_path / "t.onnx", tmp_path / "s.onnx", tmp_path / "samples")
    result = invoke("fit", *files, "--report", tmp_path / "r.json", "--report", "r.txt")
    assert result.exit_code == 2
    assert "r.txt does not end in .json" in result.stderr
    for existing in files[:2]:
        result = invoke("fit", *files, "-o", existing)
        assert result.exit_code == 2
        assert "is an input" in result.stderr


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_report_without_its_libraries_is_refused_before_any_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files = (tmp_path / "t.onnx", tmp_path / "s.onnx", tmp_path / "samples")
    result = invoke(command, *files, "--report", tmp_path / "r.html")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'r.html'}: a report in .html needs jinja2")
    assert "(the extra 'report')" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["-o", "--report", "--log-file"])
def test_places_that_cannot_be_written_are_told_first(tmp_path: Path, option: str) -> None:
    place = tmp_path / "nowhere" / "a.json"
    result = invoke("fit", tmp_path / "t", tmp_path / "s", tmp_path / "x", option, place)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {place}: the folder ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["fskd_onnx", "fskd_onnx.cli"])
def test_the_packages_are_the_program(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fskd-onnx ")


def test_a_report_of_a_new_format_is_written_by_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ReportFormat(lambda record: f"{record['samples']['count']} samples\n")
    both = {**REPORT_FORMATS, ".txt": text}
    monkeypatch.setattr("fskd_onnx.reporting.formats.REPORT_FORMATS", both)
    install_fit(monkeypatch)
    options = ("--report", tmp_path / "a.TXT", "--report", tmp_path / "b.json")
    assert invoke("fit", "t.onnx", tmp_path / "s.onnx", "x", *options).exit_code == 0
    assert (tmp_path / "a.TXT").read_text() == "5 samples\n"
    assert json.loads((tmp_path / "b.json").read_text())["samples"]["count"] == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_teacher_is_one_line(tmp_path: Path, command: str) -> None:
    teacher = tmp_path / "missing.onnx"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fskd_onnx",
            command,
            teacher,
            tmp_path / "s.onnx",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {teacher}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_library(compare_calls: Any) -> None:
    seen: list[RunOptions] = []
    compare_calls(seen.append)
    options = "--providers CUDA,cpu --max-samples 9 --batch-size 4 --seed 7 --preprocess Caffe"
    pixels = "--mean 1,2,3 --std 4 --scale 0.5 --layout nhwc --resize 256 --crop 224x192"
    result = invoke("compare", "t", "s", "x", *f"{options} {pixels} --channel-order bgr".split())
    assert result.exit_code == 1
    assert result.stderr == "error: samples.npy: stop here\n"
    assert seen == [
        RunOptions(
            providers=("cuda", "cpu"),
            max_samples=9,
            batch_size=4,
            seed=7,
            preprocess=Preprocess(
                preset="caffe",
                mean=(1, 2, 3),
                std=(4,),
                scale=0.5,
                layout="NHWC",
                resize=256,
                crop=(224, 192),
                channel_order="BGR",
            ),
        )
    ]
    seen.clear()
    invoke("compare", "t", "s", "x")
    assert seen == [RunOptions()]


def test_errors_are_one_line_whatever_libraries_say(compare_calls: Any) -> None:
    def fail(_: RunOptions) -> None:
        raise SamplesError("a.npy: cannot be read (first line\n  second line)")

    compare_calls(fail)
    result = invoke("compare", "t", "s", "x")
    assert result.stderr == "error: a.npy: cannot be read (first line second line)\n"


def test_an_interrupt_is_one_line(compare_calls: Any) -> None:
    def interrupt(_: RunOptions) -> None:
        raise KeyboardInterrupt

    compare_calls(interrupt)
    result = invoke("compare", "t", "s", "x")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"


def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_the_log(
    tmp_path: Path, compare_calls: Any
) -> None:
    def fail(_: RunOptions) -> None:
        raise KeyError("an\x1b\nodd name")

    compare_calls(fail)
    result = invoke("compare", "t", "s", "x", "-vv", "--log-file", tmp_path / "log")
    assert result.exit_code == 1
    *others, line = result.stderr.splitlines()
    assert line.startswith("error: this was not foreseen (KeyError: ")
    assert "--log-file" in line
    assert not any("Traceback" in other for other in others)
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ([], ["warning"]),
        (["-v"], ["info", "warning"]),
        (["-vv"], ["debug", "info", "warning"]),
        (["-q"], []),
    ],
)
def test_how_much_is_said(
    tmp_path: Path, compare_calls: Any, options: list[str], heard: list[str]
) -> None:
    def speak(_: RunOptions) -> None:
        log = logging.getLogger("fskd_onnx.anything")
        log.debug("debug")
        log.info("info")
        log.warning("warning")

    compare_calls(speak)
    result = invoke("compare", "t", "s", "x", *options)
    assert result.stderr.splitlines()[:-1] == heard
    result = invoke("compare", "t", "s", "x", *options, "--log-file", tmp_path / "log")
    assert result.stderr.splitlines()[:-1] == heard
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert [line.split()[-1] for line in text.splitlines()] == ["debug", "info", "warning"]


def test_a_list_of_samples_is_an_input(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a.png\n", encoding="utf-8")
    options = ("--samples-list", listed, "--log-file", listed)
    result = invoke("compare", "t", "s", tmp_path, *options)
    assert result.exit_code == 2
    assert "is an input" in result.stderr
    assert listed.read_text(encoding="utf-8") == "a.png\n"


def install_fit(monkeypatch: pytest.MonkeyPatch, error: FskdError | None = None) -> None:
    """Puts a fit in place that takes no time, and a writer of models that writes their name."""

    def fit(teacher: Path, student: Path, samples: Path, options: Any) -> Any:
        if error is not None:
            raise error
        return SimpleNamespace(model="model", report=REPORT)

    def stage_model(files: OutputFiles, model: str, path: Path, like: Path) -> None:
        files.write_text(path, f"{model} like {like.name}")

    install(monkeypatch, "fskd_onnx.pipeline.fit", fit=fit)
    install(monkeypatch, "fskd_onnx.serialization.model_files", stage_model=stage_model)


def install(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Put a module of these functions in the place of one that takes time to import."""
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def test_fit_writes_the_model_and_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fit(monkeypatch)
    reports = tmp_path / "a.json", tmp_path / "b.JSON"
    options = ("--report", reports[0], "--report", reports[1])
    result = invoke("fit", "t.onnx", tmp_path / "s.onnx", "x", *options)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "10.0% -> 92.5%" in result.stdout
    output = tmp_path / "s.fskd.onnx"
    assert output.read_text() == "model like s.onnx"
    for path in reports:
        assert json.loads(path.read_text())["output"] == str(output)
    assert len(list(tmp_path.iterdir())) == 3
    quiet = invoke("fit", "t.onnx", tmp_path / "s.onnx", "x", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_fit_without_improvement_shows_why_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = NoImprovementError("s.onnx: no closer to the teacher than before", REPORT)
    install_fit(monkeypatch, error)
    result = invoke("fit", "t", tmp_path / "s.onnx", "x", "--report", tmp_path / "a.json")
    assert result.exit_code == 3
    assert "10.0% -> 92.5%" in result.stdout
    assert result.stderr == "error: s.onnx: no closer to the teacher than before\n"
    assert list(tmp_path.iterdir()) == []


def test_match_saves_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "fskd_onnx.pipeline.match", match=lambda *_: MATCHING)
    result = invoke("match", "t.onnx", "s.onnx", "--json", tmp_path / "map.json")
    assert result.exit_code == 0
    assert "conv1" in result.stdout
    assert json.loads((tmp_path / "map.json").read_text())["pairs"][0]["student"] == "conv1"


def test_a_log_that_cannot_be_written_on_ends_and_is_said_once(
    tmp_path: Path, compare_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak(_: RunOptions) -> None:
        log = logging.getLogger("fskd_onnx.anything")
        log.info("before")

        def fail(self: logging.FileHandler, record: logging.LogRecord) -> None:
            try:
                os.write(-1, record.getMessage().encode())
            except OSError:
                self.handleError(record)

        monkeypatch.setattr(logging.FileHandler, "emit", fail)
        log.info("lost")
        log.info("lost too")

    compare_calls(speak)
    result = invoke("compare", "t", "s", "x", "--log-file", tmp_path / "log")
    first, *others = result.stderr.splitlines()
    assert "log: the log cannot be written on ([Errno 9] Bad file descriptor)" in first
    assert len(others) == 1  # of the test itself
    assert "Traceback" not in result.stderr


def test_a_log_that_cannot_be_opened_is_an_error(
    tmp_path: Path, compare_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    compare_calls(lambda _: None)
    monkeypatch.setattr(logging.FileHandler, "_open", refuse)
    result = invoke("compare", "t", "s", "x", "--log-file", tmp_path / "log")
    assert result.exit_code == 1
    assert "log: cannot be written (Permission denied)" in result.stderr

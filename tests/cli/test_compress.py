"""The command ``compress`` without any model: what it asks for, writes, and says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fskd_onnx.compress_options import CompressOptions, MethodName
from fskd_onnx.compress_results import CompressResult
from fskd_onnx.compression.plan import plan_to_json
from fskd_onnx.errors import FskdError, NoImprovementError, TargetError
from fskd_onnx.options import FitOptions, Preprocess, RunOptions
from fskd_onnx.serialization.atomic_files import OutputFiles
from tests.cli.test_usage import REPORT, install, invoke, restored_logging
from tests.reporting.records import COMPRESSION, PLAN
from tests.reports import read_report

__all__ = ["restored_logging"]

Seen = list[tuple[Path, Path | None, CompressOptions]]


@pytest.fixture
def compress_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Puts a compression in place that takes no time, and a writer that writes a name."""

    def replace(error: FskdError | None = None, model: Any = "model") -> Seen:
        seen: Seen = []

        def compress(teacher: Path, samples: Path | None, options: CompressOptions) -> Any:
            seen.append((teacher, samples, options))
            if error is not None:
                raise error
            made = None if options.dry_run else model
            report = dataclasses.replace(COMPRESSION, output=None)
            return CompressResult(made, PLAN, report)

        def stage_model(files: OutputFiles, model: str, path: Path, like: Path) -> None:
            files.write_text(path, f"{model} like {like.name}")

        install(monkeypatch, "fskd_onnx.pipeline.compress", compress=compress)
        install(monkeypatch, "fskd_onnx.serialization.model_files", stage_model=stage_model)
        return seen

    return replace


def test_help_names_all_methods_and_the_options_of_the_fit() -> None:
    text = " ".join(invoke("compress", "-h").stdout.replace("drop- block", "drop-block").split())
    assert all(
        name.replace("-", "") in text.replace("-", "").replace(" ", "") for name in MethodName
    )
    for option in (
        *("reduce", "max-drop", "method", "skip", "round-to", "max-ratio", "dry-run", "save-plan"),
        *("plan", "no-fit", "output", "adapter", "targets", "augment", "refine", "optimizer"),
        *("solver", "groups", "memory-limit", "report", "providers", "preprocess"),
        *("max-samples", "seed"),
    ):
        assert f"--{option} " in text
    assert "--map" not in text


def test_options_reach_the_library(tmp_path: Path, compress_calls: Callable[..., Seen]) -> None:
    seen = compress_calls()
    teacher = tmp_path / "t.onnx"
    options = (
        "--reduce params=60% --method L1,tucker --skip stem --skip head* --round-to 4 "
        "--max-ratio 80% --rounds 2 --adapter kernel --targets select --augment flip "
        "--augment-copies 3 --refine 9 --solver torch --memory-limit 2GB --groups folders "
        "--providers CPU --max-samples 9 --seed 7 --preprocess imagenet"
    )
    assert invoke("compress", teacher, "x", *options.split()).exit_code == 0
    run = RunOptions(
        providers=("cpu",),
        max_samples=9,
        seed=7,
        preprocess=Preprocess(preset="imagenet"),
        memory_limit=2 * 10**9,
        groups="folders",
    )
    expected = CompressOptions(
        reduce="params=60%",
        methods=("l1", "tucker"),
        skip=("stem", "head*"),
        round_to=4,
        max_ratio=0.8,
        rounds=2,
        fit=FitOptions(run, "kernel", "select", ("flip",), 3, "torch", refine=9),
    )
    assert seen == [(teacher, Path("x"), expected)]
    assert seen[0][2].run == run
    seen.clear()
    assert invoke("compress", teacher).exit_code == 0
    assert seen == [(teacher, None, CompressOptions())]
    seen.clear()
    assert invoke("compress", teacher, "x", "--max-drop", "1%").exit_code == 0
    assert seen[0][2].max_drop == 0.01
    assert invoke("compress", teacher, "x", "--plan", "p.json", "--no-fit").exit_code == 0
    assert (seen[1][2].plan, seen[1][2].no_fit) == ("p.json", True)


@pytest.mark.parametrize(
    "options",
    [
        ["--reduce", "macs"],
        ["--reduce", "macs=100%"],
        ["--reduce", "speed=10%"],
        ["--max-drop", "0.5"],
        ["--max-drop", "some"],
        ["--max-drop", "0%"],
        ["--max-drop", "100%"],
        ["--method", "magic"],
        ["--method", "auto,l1"],
        ["--method", "l1,,tucker"],
        ["--round-to", "0"],
        ["--max-ratio", "0"],
        ["--max-ratio", "1.5"],
        ["--max-ratio", "nan"],
        ["--max-ratio", "most"],
        ["--skip", ""],
        ["--reduce", "macs=50%", "--max-drop", "1%"],
        ["--plan", "p.json", "--reduce", "macs=50%"],
        ["--plan", "p.json", "--save-plan", "p.json"],
        ["--no-fit", "--max-drop", "1%"],
        ["--rounds", "0"],
        ["--rounds", "2", "--dry-run"],
        ["--rounds", "2", "--save-plan", "p.json"],
        ["--adapter", "wobble"],
        ["--augment", "wobble"],
        ["--memory-limit", "lots"],
        ["--report", "r.txt"],
        ["--map", "m.json"],
        ["--providers", "cuda,,cpu"],
    ],
)
def test_wrong_options_are_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compress_calls: Callable[..., Seen],
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = compress_calls()
    result = invoke("compress", "t.onnx", "samples", *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert options[0] in result.stderr or "Invalid value" in result.stderr
    assert not seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--method", "thinet"], ["--max-drop", "1%"]])
def test_what_needs_samples_is_refused_without(options: list[str]) -> None:
    result = invoke("compress", "t.onnx", *options)
    assert result.exit_code == 2
    assert "needs samples" in result.stderr


def test_a_missing_teacher_is_one_line(tmp_path: Path) -> None:
    result = invoke("compress", tmp_path / "missing.onnx", "--report", tmp_path / "r.json")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/missing.onnx: there is no such file")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["-o", "--save-plan", "--report", "--log-file"])
def test_an_output_that_is_an_input_is_wrong_usage(tmp_path: Path, option: str) -> None:
    plan = tmp_path / "plan.json"
    result = invoke("compress", "t.onnx", "x", "--plan", plan, option, plan)
    assert result.exit_code == 2
    assert "is an input (the plan)" in " ".join(result.stderr.split()).replace("│ ", "")


@pytest.mark.parametrize("option", ["-o", "--save-plan", "--report", "--log-file"])
def test_places_that_cannot_be_written_are_told_first(tmp_path: Path, option: str) -> None:
    place = tmp_path / "nowhere" / "a.json"
    result = invoke("compress", tmp_path / "t.onnx", "x", option, place)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {place}: the folder ")


def test_the_student_the_plan_and_the_report_are_written(
    tmp_path: Path, compress_calls: Callable[..., Seen]
) -> None:
    compress_calls()
    plan, report = tmp_path / "plan.json", tmp_path / "r.json"
    options = ("--save-plan", plan, "--report", report)
    result = invoke("compress", tmp_path / "t.onnx", "x", *options)
    assert result.exit_code == 0
    assert result.stderr == ""
    output = tmp_path / "t.small.onnx"
    assert output.read_text() == "model like t.onnx"
    assert plan.read_text() == plan_to_json(PLAN)
    document = read_report(report)
    assert document["output"] == document["fit"]["output"] == str(output)
    assert "thinet" in result.stdout
    assert str(output) in result.stdout
    assert len(list(tmp_path.iterdir())) == 3
    quiet = invoke("compress", tmp_path / "t.onnx", "x", "-q", "-o", tmp_path / "o.onnx")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_dry_run_shows_and_saves_the_plan_and_makes_no_model(
    tmp_path: Path, compress_calls: Callable[..., Seen]
) -> None:
    compress_calls()
    plan = tmp_path / "plan.json"
    result = invoke("compress", tmp_path / "t.onnx", "x", "--dry-run", "--save-plan", plan)
    assert result.exit_code == 0
    assert "thinet" in result.stdout
    assert "none was written" in result.stdout
    assert list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (TargetError("t.onnx: cannot lose 99% of its multiply-adds", PLAN), "thinet"),
        (TargetError("t.onnx: cannot lose 99% of its multiply-adds"), ""),
        (NoImprovementError("t.onnx: cannot be fitted", REPORT), "10.0% -> 92.5%"),
    ],
)
def test_a_target_out_of_reach_shows_what_comes_closest_and_writes_nothing(
    tmp_path: Path, compress_calls: Callable[..., Seen], error: FskdError, shown: str
) -> None:
    compress_calls(error)
    options = ("--report", tmp_path / "r.json", "--save-plan", tmp_path / "p.json")
    result = invoke("compress", tmp_path / "t.onnx", "x", *options)
    assert result.exit_code == 3
    assert shown in result.stdout
    assert bool(shown) == bool(result.stdout)
    assert result.stderr == f"error: {error}\n"
    assert list(tmp_path.iterdir()) == []

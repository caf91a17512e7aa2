"""README.md and docs/ stay true: commands and code run, options are those of the program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fskd_onnx.options import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
# Where each measured table stands.
TABLES = {
    "summary": "README.md",
    "results": "docs/accuracy.md",
    "compression": "docs/compression.md",
    "speed": "docs/speed.md",
    "real": "docs/real_networks.md",
}
# Packages come from where this environment already has them; the rest of the line is run as it is.
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", "installed"]


def blocks(language: str) -> list[str]:
    """Give the fenced blocks of one language, of all pages."""
    text = "\n".join(PAGES.values())
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run(command: list[str], cwd: Path) -> str:
    """Run a command with this interpreter's scripts first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the commands read, so that nothing is written into the repository."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("fskd_onnx", "passes", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_every_command_runs(checkout: Path) -> None:
    found = commands()
    assert {command[1] for command in found if command[0] == "fskd-onnx"} >= {
        "fit",
        "compress",
        "match",
        "compare",
    }
    # Not the copy: there the packages would be imported from the current folder.
    elsewhere = checkout.parent / "elsewhere"
    shutil.copytree(checkout / "models", elsewhere / "models")
    for command in found:
        if command[0] == "make":
            # The demo runs in test_demo.py, the tests are running, so here: is there such a target?
            assert run([*command[:1], "-n", *command[1:]], checkout)
        elif command[:4] == ["python", "-m", "pip", "install"]:
            run([*command[:4], *OFFLINE, *command[4:]], checkout)
            assert (checkout / "installed" / "fskd_onnx" / "passes" / "base.py").is_file()
        else:
            assert command[0] == "fskd-onnx", f"no rule for running {shlex.join(command)}"
            run(command, elsewhere)
    assert (elsewhere / "fused.onnx").is_file()


def test_the_python_example_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "demo", tmp_path / "models" / "demo")
    (example,) = blocks("python")
    before, arrow, after = run([sys.executable, "-c", example], tmp_path).split()
    assert arrow == "->"
    assert float(after) > float(before)


def test_the_options_are_those_of_the_program(tmp_path: Path) -> None:
    top = run(["fskd-onnx", "--help"], tmp_path)
    names = re.findall(r"^  (\w+)  ", top[top.index("Commands:") :], re.MULTILINE)
    assert "fit" in names
    helps = "".join(run(["fskd-onnx", name, "--help"], tmp_path) for name in names)
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", helps, re.MULTILINE)) - {"--help"}
    documented = set(re.findall(r"`(--[a-z-]+)[ `]", README))
    assert documented == options


def test_all_presets_are_listed() -> None:
    (row,) = (line for line in README.splitlines() if line.startswith("| `--preprocess"))
    assert set(PRESETS) <= set(re.findall(r"`([a-z-]+)`", row))


def table(marker: str) -> str:
    """Give what stands between two markers."""
    pattern = rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->"
    found = {page: re.findall(pattern, text, re.DOTALL) for page, text in PAGES.items()}
    (only,) = found.pop(TABLES[marker])
    assert not any(found.values())
    return str(only)


@pytest.mark.parametrize("marker", TABLES)
def test_measured_tables_have_their_place(marker: str) -> None:
    assert "|" in table(marker)
    assert "Printed by `python -m tests.benchmarks." in table(marker)


def test_the_summary_is_short_and_agrees_with_the_long_table() -> None:
    short = rows(table("summary"))
    assert 0 < len(short) <= 10
    long = {row["student"]: row for row in rows(table("results")) if row["samples"] == "500"}
    for row in short:
        assert {name: long[row["student"]][name] for name in row} == row


def rows(text: str) -> list[dict[str, str]]:
    """Give the rows of the first table of a text, each by the names of the columns."""
    lines = [line for line in text.split("<details>")[0].splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, cells, strict=True)) for cells in body]


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_between_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_links_into_pages_name_a_heading() -> None:
    for page, text in PAGES.items():
        for target, heading in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text):
            other = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            lines = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {line.lower().replace(" ", "-") for line in lines}, (page, heading)

"""What is installed, who imports whom, and that ARCHITECTURE.md says so."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Names of distributions that are not those of their modules.
DISTRIBUTIONS = {"PIL": "pillow", "google": "protobuf", "onnx_graphsurgeon": "onnx-graphsurgeon"}
CODE = ("fskd_onnx", "passes", "models")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy because a build leaves files beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__", "demo")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--no-input", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(source / "dist")]
    subprocess.run([*pip, "wheel", *options, str(source)], check=True, stdin=subprocess.DEVNULL)
    (path,) = (source / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_two_packages_are_installed_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in FILES.values()}
    expected = {re.sub("^passes/", "fskd_onnx/passes/", name) for name in expected}
    assert {name for name in files if name.endswith(".py")} == expected
    templates = ROOT / "fskd_onnx" / "reporting" / "templates"
    others = {path.relative_to(ROOT).as_posix() for path in templates.iterdir()}
    assert {name for name in files if not name.endswith((".py", "py.typed"))} == others


def test_the_wheel_holds_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    metadata = {name.split(".dist-info/")[-1]: name for name in wheel.namelist()}
    assert "licenses/LICENSE" in metadata
    assert "fskd-onnx = fskd_onnx.cli:main" in wheel.read(metadata["entry_points.txt"]).decode()


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each module that a file imports from, with the name that it takes from there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (("" if node.module is None else node.module, a.name) for a in node.names)


def module_of(path: Path) -> str:
    """Give the name under which a file of the two packages is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "fskd_onnx" else ("fskd_onnx", *parts))


FILES = {
    module_of(path): path
    for folder in ("fskd_onnx", "passes")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def reads(module: str) -> set[str]:
    """Give the modules of the two packages that one imports, for its types or in a function too."""
    found = set()
    for source, name in imports(FILES[module]):
        if source.split(".")[0] == "fskd_onnx":
            whole = f"{source}.{name}"
            found.add(whole if whole in FILES else source)
    return found - {module}


def stage(module: str) -> str:
    """Give the stage of a module: its package, or itself where it is in none but the top."""
    inside = module.removeprefix("fskd_onnx").lstrip(".")
    return max(
        (s for s in STAGES if inside == s or inside.startswith(f"{s}.")), key=len, default=inside
    )


STAGES = (
    *("results", "compare_results", "compress_results", "printable", "errors", "option_checks"),
    *("options", "compress_options", "progress", "timing", "versions"),
    *("passes.errors", "passes.analysis", "passes"),
    *("serialization", "samples", "runtime", "linalg"),
    *("matching", "fitting", "gradient", "compression", "reporting", "pipeline", "cli"),
    "",  # the package itself, which offers names of all stages
    "__main__",
)
"""In the order in which data flows: a module imports from its own stage and from earlier ones."""


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_data(module: str) -> None:
    later = STAGES[STAGES.index(stage(module)) + 1 :]
    assert [read for read in reads(module) if stage(read) in later] == []


def test_no_two_modules_import_each_other() -> None:
    # A package is made of its modules: importing from one of them does not make a circle with it.
    graph = {module: reads(module) for module, path in FILES.items() if path.stem != "__init__"}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", FILES)
def test_nothing_that_is_installed_imports_models_or_tests(module: str) -> None:
    tops = {source.split(".")[0] for source, _ in imports(FILES[module])}
    assert not tops & {"models", "tests", "passes"}


def test_passes_are_usable_on_their_own() -> None:
    of_passes = [module for module in FILES if module.startswith("fskd_onnx.passes")]
    read = {source for module in of_passes for source in reads(module)}
    assert {source for source in read if not source.startswith("fskd_onnx.passes")} == set()


def test_every_package_is_listed_for_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {module for module, path in FILES.items() if path.stem == "__init__"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_dependencies_are_those_that_are_imported() -> None:
    tops = {source.split(".")[0] for path in FILES.values() for source, _ in imports(path)}
    imported = tops - set(sys.stdlib_module_names) - {"fskd_onnx"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required, optional = (
        {re.split(r"[^\w-]", line)[0] for line in lines}
        for lines in (project["dependencies"], extras["torch"] + extras["report"])
    )
    needed = {DISTRIBUTIONS.get(name, name) for name in imported}
    assert needed - optional == required - {"onnxruntime-gpu"}


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:fskd_onnx|passes|models)/(?:\w+/)*(?!__)\w+\.py)`", text))
    exist = {
        path.relative_to(ROOT).as_posix()
        for folder in CODE
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.startswith("__")
    }
    assert named == exist


def test_files_name_no_folder_of_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.:/-])/(root|home|work|opt|mnt|srv)/")
    suffixes = {".py", ".md", ".toml", ".yml"}
    tops = [ROOT / name for name in (*CODE, "tests", ".ci")]
    files = [path for top in tops for path in top.rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    files += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    this = Path(__file__).resolve()
    found = [
        str(path.relative_to(ROOT))
        for path in files
        if path.resolve() != this and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []

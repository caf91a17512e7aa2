"""What is installed, who imports whom, and that ARCHITECTURE.md says so."""

from __future__ import annotations

import ast
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
    expected = {f"fskd_onnx/{path.name}" for path in (ROOT / "fskd_onnx").glob("*.py")}
    expected |= {f"fskd_onnx/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    assert {name for name in files if name.endswith(".py")} == expected
    assert {Path(name).name for name in files if not name.endswith(".py")} <= {"py.typed"}


def test_the_wheel_holds_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    metadata = {name.split(".dist-info/")[-1]: name for name in wheel.namelist()}
    assert "licenses/LICENSE" in metadata
    assert "fskd-onnx = fskd_onnx.cli.app:main" in wheel.read(metadata["entry_points.txt"]).decode()


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each module that a file imports from, with the name that it takes from there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (("" if node.module is None else node.module, a.name) for a in node.names)


def modules_read(path: Path) -> set[str]:
    """Give the modules of this project that a file imports, as `ARCHITECTURE.md` names them."""
    found = set()
    for module, name in imports(path):
        for full in (module, f"{module}.{name}"):
            file = full.replace("fskd_onnx.passes", "passes").replace(".", "/") + ".py"
            if (ROOT / file).is_file():
                found.add(file)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "passes").glob("*.py")), ids=lambda p: p.name)
def test_passes_are_usable_on_their_own(path: Path) -> None:
    ours = [module for module, _ in imports(path) if module.split(".")[0] in (*CODE, "tests")]
    assert all(f"{module}.".startswith("fskd_onnx.passes.") for module in ours)


@pytest.mark.parametrize("path", sorted((ROOT / "fskd_onnx").glob("*.py")), ids=lambda p: p.name)
def test_the_machine_imports_neither_models_nor_tests_nor_its_own_top(path: Path) -> None:
    read = modules_read(path)
    assert not any(file.startswith(("models/", "tests/")) for file in read)
    assert "fskd_onnx/cli.py" not in read
    importers_of_pipeline = {"cli.py", "__init__.py"}
    assert "fskd_onnx/pipeline.py" not in read or path.name in importers_of_pipeline


def test_dependencies_are_those_that_are_imported() -> None:
    files = [path for name in ("fskd_onnx", "passes") for path in (ROOT / name).glob("*.py")]
    tops = {module.split(".")[0] for path in files for module, _ in imports(path)}
    imported = tops - set(sys.stdlib_module_names) - {"fskd_onnx"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required, optional = (
        {re.split(r"[^\w-]", line)[0] for line in lines}
        for lines in (project["dependencies"], project["optional-dependencies"]["torch"])
    )
    needed = {DISTRIBUTIONS.get(name, name) for name in imported}
    assert needed - optional == required - {"onnxruntime-gpu"}


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:fskd_onnx|passes|models)/[a-z]\w*\.py)`", text))
    exist = {
        f"{folder}/{path.name}"
        for folder in CODE
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
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

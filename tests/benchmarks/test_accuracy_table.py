"""The benchmark of accuracy: training on few samples learns, cells are kept, the table is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fskd_onnx.errors import FskdError
from models.data import Split, normalise
from models.networks import resnet20
from models.prune import ResNetRecipe, prune_resnet20
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Cell, Measurement, Student, Table, code_of
from tests.benchmarks.gradient import FewSample, train_few

FIRST, SECOND = Student("vgg16", "A"), Student("resnet20", "inner50")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; the models in it are a few bytes."""
    monkeypatch.setenv("FSKD_ONNX_CACHE", str(tmp_path))

    def path(*names: str) -> Path:
        (tmp_path / "-".join(names)).write_bytes("-".join(names).encode())
        return tmp_path / "-".join(names)

    monkeypatch.setattr(accuracy, "teacher_path", path)
    monkeypatch.setattr(accuracy, "student_path", path)
    caches = (accuracy._digest, accuracy._sources, accuracy._data, accuracy.teacher_accuracy)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_training_on_few_samples_brings_the_student_closer() -> None:
    torch.manual_seed(0)
    teacher = resnet20((4, 6, 8))
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    with torch.no_grad():
        for _ in range(30):
            teacher(torch.from_numpy(normalise(images)))  # gives batch normalisation its statistics
    teacher.eval()
    student = prune_resnet20(teacher, ResNetRecipe(inner=50))
    kept = teacher.state_dict()["stages.0.0.conv1.weight"]
    pruned = student.state_dict()["stages.0.0.conv1.weight"]
    channels = {
        "stages.0.0.bn1": tuple(int((kept == row).flatten(1).all(1).nonzero()) for row in pruned),
        "stages.2.2.bn2": tuple(range(8)),
    }
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settings = FewSample(rates=(0.003, 0.01), trial_steps=10, steps=40, batch=16, check_every=5)
    none = FewSample(rates=(0.0,), trial_steps=1, steps=1, batch=16, check_every=1)
    trained = train_few(teacher, student, channels, images, settings)
    again = train_few(teacher, student, channels, images, settings)
    untrained = train_few(teacher, student, channels, images, none)

    assert trained.error < 0.9 * untrained.error
    assert trained.rate in settings.rates
    assert not trained.network.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    expected = trained.network.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in again.network.state_dict().items())


def test_a_cell_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Measurement] = []

    def run(wanted: Measurement) -> Cell:
        measured.append(wanted)
        return Cell(0.5, 2.0, 1.5, "remark")

    monkeypatch.setattr(accuracy, "_run", run)
    wanted = Measurement.of("paper", FIRST, 50, 1)
    assert accuracy.cached(wanted) is None
    assert accuracy.measure(wanted) == accuracy.measure(wanted) == Cell(0.5, 2.0, 1.5, "remark")
    assert measured == [wanted]
    assert accuracy.cached(wanted) == Cell(0.5, 2.0, 1.5, "remark")
    assert accuracy.cached(Measurement.of("paper", FIRST, 50, 2)) is None
    assert accuracy.cached(Measurement.of("pointwise", FIRST, 50, 1)) is None

    monkeypatch.setattr(accuracy, "_sources", lambda method: "other code")
    assert accuracy.cached(wanted) is None
    assert accuracy.cached(wanted, any_code=True) == Cell(0.5, 2.0, 1.5, "remark")


def test_methods_without_samples_have_one_cell_for_all_counts() -> None:
    assert Measurement.of("fine-tune", FIRST, 50, 1) == Measurement.of("fine-tune", FIRST, 500, 0)
    assert Measurement.of("auto", FIRST, 50, 1) != Measurement.of("auto", FIRST, 500, 1)


def test_a_method_that_gives_no_student_counts_as_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise FskdError(f"{folder}/student.onnx: the fit brought it no closer")

    data = Split(np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.int64))
    monkeypatch.setattr(accuracy, "load", lambda split: data)
    monkeypatch.setattr(accuracy, "fit", refuse)
    monkeypatch.setattr(accuracy, "onnx_accuracy", lambda model, data: 0.1)
    monkeypatch.setattr("onnx.load", lambda path: None)
    cell = accuracy.measure(Measurement.of("auto", FIRST, 10, 0))
    assert cell == Cell(0.1, 0.0, note="student.onnx: the fit brought it no closer", failed=True)


def test_what_changes_no_result_changes_no_key() -> None:
    one = '"""Doc."""\ndef f(x: int) -> int:\n    """Add."""\n    return x + 1  # why\n'
    assert code_of(one) == code_of("def f(x: int) -> int:\n    return (x +\n        1)\n")
    assert code_of(one) != code_of(one.replace("+ 1", "+ 2"))


def test_every_method_has_its_settings_and_sources() -> None:
    for method in accuracy.METHODS:
        json.dumps(accuracy._settings(method))
        assert accuracy._sources(method)
    modules = {path.stem for path in (accuracy.ROOT / "fskd_onnx").glob("*.py")}
    assert {"solve", "match"} <= modules - accuracy.IRRELEVANT


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(accuracy, "teacher_accuracy", lambda network: 0.93)
    pointwise = [Measurement.of("pointwise", FIRST, 500, draw) for draw in range(3)]
    return Table(
        students=(FIRST, SECOND),
        samples=(10, 500),
        methods=("untouched", "pointwise"),
        draws=3,
        cells={
            Measurement.of("untouched", FIRST, 10, 0): Cell(0.1, 0.0),
            pointwise[0]: Cell(0.92, 9.0, 2.0),
            pointwise[1]: Cell(0.93, 9.0, 3.0),
            pointwise[2]: Cell(0.91, 9.0, 4.0),
            Measurement.of("pointwise", SECOND, 10, 0): Cell(
                0.2, 0.0, note="no closer", failed=True
            ),
        },
    )


def test_the_table(table: Table) -> None:
    assert table.markdown().splitlines() == [
        "Accuracy on the 10,000 test images of Fashion-MNIST, per cent; mean of 3 draws of the"
        " samples, ± half their range:",
        "",
        "| student | samples | teacher | untouched | pointwise |",
        "| --- | --- | --- | --- | --- |",
        "| VGG-16 `A` | 10 | 93.0 | 10.0 | - |",
        "| VGG-16 `A` | 500 | 93.0 | 10.0 | 92.0 ± 1.0 |",
        "| ResNet-20 `inner50` | 10 | 93.0 | - | 20.0 † |",
        "| ResNet-20 `inner50` | 500 | 93.0 | - | - |",
        "",
        "<details><summary>CPU seconds, of all threads</summary>",
        "",
        "| student | samples | pointwise |",
        "| --- | --- | --- |",
        "| VGG-16 `A` | 10 | - |",
        "| VGG-16 `A` | 500 | 3 |",
        "| ResNet-20 `inner50` | 10 | - |",
        "| ResNet-20 `inner50` | 500 | - |",
        "",
        "</details>",
    ]
    assert list(table.notes()) == ["- pointwise, resnet20 inner50, 10 samples, draw 0: no closer"]


def test_the_goals_are_judged(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = [accuracy.Goal("pointwise", FIRST, 500, gap) for gap in (0.9, 1.0)]
    goals += [accuracy.Goal("pointwise", SECOND, 500, 1.0), accuracy.Goal("auto", FIRST, 500, 1.0)]
    monkeypatch.setattr(accuracy, "GOALS", goals)
    assert [line.split(":")[0] for line in table.verdicts()] == ["- MISSED", "- met", "- open"]


def test_what_holds_in_every_row_is_judged(table: Table) -> None:
    assert [line.split(",")[0] for line in table.promises()] == [
        "- met: in none of 3 fits worse than the untouched student"
    ]
    more = {
        Measurement.of("kernel", FIRST, 500, 0): Cell(0.90, 1.0),
        Measurement.of("auto", FIRST, 500, 0): Cell(0.917, 1.0),
        Measurement.of("auto", FIRST, 10, 0): Cell(0.09, 1.0),
    }
    lines = list(replace(table, cells={**table.cells, **more}).promises())
    assert "- met: auto" in lines[0]
    assert "each of 1 rows, is at worst 0.30 (vgg16 A, 500 samples)" in lines[0]
    assert "- MISSED: in none" in lines[1]
    assert "gains at least -1.00 (auto, vgg16 A, 10 samples, draw 0)" in lines[1]
    more[Measurement.of("auto", FIRST, 500, 1)] = Cell(0.91, 1.0)
    assert "is at worst 0.30" in next(replace(table, cells={**table.cells, **more}).promises())
    more[Measurement.of("kernel", FIRST, 500, 1)] = Cell(0.9, 1.0)
    assert "- MISSED: auto" in next(replace(table, cells={**table.cells, **more}).promises())


def test_only_the_block_of_the_readme_is_replaced(tmp_path: Path, table: Table) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    block = accuracy.readme_block(table)
    accuracy.write_readme(readme, block)
    expected = f"before\n<!-- results -->\n{block}<!-- /results -->\nafter\n"
    assert readme.read_text(encoding="utf-8") == expected
    readme.write_text("none", encoding="utf-8")
    with pytest.raises(ValueError, match="markers"):
        accuracy.write_readme(readme, block)

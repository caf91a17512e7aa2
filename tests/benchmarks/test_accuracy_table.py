"""The benchmark of accuracy: training learns, entries last as long as they are true, as shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fskd_onnx.errors import FskdError
from models.data import Split, normalise
from models.networks import resnet20
from models.prune import ResNetRecipe, prune_resnet20
from tests.benchmarks import accuracy, methods, probes, table
from tests.benchmarks.cells import (
    DECOMPOSED,
    FILE,
    METHODS,
    Cells,
    Entry,
    Outcome,
    Place,
    Student,
    same_outcome,
)
from tests.benchmarks.gradient import FewSample, train_few
from tests.benchmarks.markers import write_between
from tests.benchmarks.table import Goal, Table

FIRST, SECOND = Student("vgg16", "A"), Student("resnet20", "inner50")


def test_training_on_few_samples_brings_the_student_closer() -> None:
    torch.manual_seed(0)
    teacher = resnet20((4, 6, 8))
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    with torch.no_grad():
        for _ in range(10):
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
    settings = FewSample(rates=(0.003, 0.01), trial_steps=5, steps=20, batch=16, check_every=5)
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


def fitted(sha256: str = "a", error: float = 0.25, ridge: float = 0.1) -> Outcome:
    """What a method did to one probe of one block."""
    numbers = [error, ["conv", "kernel", ridge, error]]
    return {"within": 1e-5, "probes": {"a, 50 samples": {"sha256": sha256, "numbers": numbers}}}


def test_outcomes_are_the_same_to_the_byte_or_but_for_rounding() -> None:
    assert same_outcome(fitted(), fitted())
    assert same_outcome(fitted(), fitted("b", error=0.25 * (1 + 1e-6)))
    assert not same_outcome(fitted(), fitted("b", error=0.25 * (1 + 1e-4)))
    assert not same_outcome(fitted(), fitted("b", ridge=0.01))
    assert not same_outcome(fitted(), {**fitted(), "probes": {}})
    assert not same_outcome({"code": "a"}, {"code": "b"})
    assert same_outcome({"code": "a"}, {"code": "a"})


def test_few_and_many_samples_go_by_probes_of_their_kind() -> None:
    def both(few: float, many: float) -> Outcome:
        probes = {"a, 10 samples": fitted(str(few), few), "b, 60 samples": fitted(str(many), many)}
        named = {name: one["probes"]["a, 50 samples"] for name, one in probes.items()}
        return {"within": 1e-5, "probes": named}

    now, then = both(0.1, 0.2), both(0.3, 0.2)
    assert not same_outcome(then, now)
    assert not same_outcome(then, now, 50)
    assert same_outcome(then, now, 500)


def test_a_fit_of_a_probe_says_what_was_chosen() -> None:
    probe = probes.Probe("vgg16_small", "vgg16_small_D", 60)
    found = probes._fit(probe, methods.FITS["pointwise"])
    again = probes._fit(probe, methods.FITS["pointwise"])
    assert found == again
    error, first, second, *_ = found["numbers"]
    assert 0 < error < 1
    assert first == ["stages.0.0.conv", "exact"]  # it has all inputs: only rounding is left
    assert second[:2] == ["stages.0.1.conv", "pointwise"]
    other = probes._fit(probe, methods.FITS["kernel"])
    one, two = ({"within": 1e-5, "probes": {"one": outcome}} for outcome in (found, other))
    assert not same_outcome(one, two)


def test_the_key_of_training_is_its_code_and_its_settings() -> None:
    one = '"""Doc."""\nimport os\ndef f(x: int) -> int:\n    """Add."""\n    return x + 1  # why\n'
    assert probes.code_of(one) == probes.code_of("def f(x: int) -> int:\n    return (x +\n   1)\n")
    assert probes.code_of(one) != probes.code_of(one.replace("+ 1", "+ 2"))
    assert probes.outcome("fine-tune")["settings"]["epochs"] == 3
    assert probes.outcome("untouched") == {}


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cells:
    """Nothing known; models of a few bytes; every measurement gives 90, 91, 92 ... per cent."""

    def path(*names: str) -> Path:
        file = tmp_path / "-".join(names)
        file.touch()
        return file

    monkeypatch.setattr(accuracy, "teacher_path", path)
    monkeypatch.setattr(accuracy, "student_path", path)
    monkeypatch.setattr(accuracy, "teacher_accuracy", lambda network: 93.5)
    monkeypatch.setattr(
        accuracy, "measure", lambda place, draw: Entry(90.0 + draw, cpu_seconds=2.0)
    )
    monkeypatch.setattr(accuracy, "outcome", lambda method, is_decomposed: fitted())
    monkeypatch.setattr(Cells, "save", lambda self: None)
    return Cells()


def test_entries_of_decomposed_students_go_by_decomposed_probes(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Place.of("auto", student, 50) for student in (FIRST, DECOMPOSED[0])]
    for place in places:
        accuracy.bring_up_to_date(cells, place, draws=1)
    assert not accuracy.stale_places(cells)
    monkeypatch.setattr(
        accuracy,
        "outcome",
        lambda method, is_decomposed: fitted("c", 0.2 if is_decomposed else 0.25),
    )
    assert accuracy.stale_places(cells) == {places[1]}


def test_what_is_known_is_not_measured_again(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = Place.of("auto", FIRST, 50)
    accuracy.bring_up_to_date(cells, place, draws=1)
    assert cells.entries[place].known_draws == (90.0,)
    accuracy.bring_up_to_date(cells, place, draws=3)
    entry = cells.entries[place]
    assert (entry.each, entry.accuracy, entry.half_range) == ((90.0, 91.0, 92.0), 91.0, 1.0)
    assert (entry.draws, entry.cpu_seconds) == (3, 2.0)
    assert cells.teachers == {"vgg16": 93.5}
    assert not accuracy.stale_places(cells)

    # Rounded otherwise: nothing changes.
    monkeypatch.setattr(accuracy, "measure", lambda place, draw: Entry(80.0))
    monkeypatch.setattr(accuracy, "outcome", lambda method, is_decomposed: fitted("b"))
    accuracy.bring_up_to_date(cells, place, draws=3)
    assert cells.entries[place] is entry

    # Fitted otherwise, or other models: all draws are measured anew.
    monkeypatch.setattr(accuracy, "outcome", lambda method, is_decomposed: fitted("c", error=0.2))
    assert accuracy.stale_places(cells) == {place}
    accuracy.bring_up_to_date(cells, place, draws=2)
    assert cells.entries[place].each == (80.0, 80.0)
    assert not accuracy.stale_places(cells)
    (tmp_path / "vgg16-A").write_bytes(b"another")
    monkeypatch.setattr(accuracy, "measure", lambda place, draw: Entry(70.0))
    accuracy.bring_up_to_date(cells, place, draws=1)
    assert cells.entries[place].known_draws == (70.0,)

    # Draws cannot be added to a mean.
    cells.entries[place] = replace(cells.entries[place], draws=2, each=())
    accuracy.bring_up_to_date(cells, place, draws=2)
    assert cells.entries[place].draws == 2
    accuracy.bring_up_to_date(cells, place, draws=3)
    assert cells.entries[place].each == (70.0,) * 3


def test_methods_without_samples_have_one_entry_and_one_draw(cells: Cells) -> None:
    assert Place.of("fine-tune", FIRST, 50) == Place.of("fine-tune", FIRST, 500)
    assert Place.of("auto", FIRST, 50) != Place.of("auto", FIRST, 500)
    place = Place.of("fine-tune", FIRST, 50)
    accuracy.bring_up_to_date(cells, place, draws=3)
    assert cells.entries[place].draws == 1


def test_a_method_that_gives_no_student_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise FskdError(f"{tmp_path}/student.onnx: the fit brought it no closer")

    data = Split(np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.int64))
    for name in ("teacher_path", "student_path"):
        monkeypatch.setattr(methods, name, lambda *names: tmp_path / "student.onnx")
    monkeypatch.setattr(methods, "_data", lambda split: data)
    monkeypatch.setattr(methods, "fit", refuse)
    monkeypatch.setattr(methods, "onnx_accuracy", lambda model, data: 10.0)
    monkeypatch.setattr("onnx.load", lambda path: None)
    found = methods.measure(Place.of("auto", FIRST, 10), draw=0)
    assert found == Entry(10.0, refused="student.onnx: the fit brought it no closer")


def test_the_file_is_complete_and_written_as_it_is_read(tmp_path: Path) -> None:
    cells = Cells.load()
    assert cells.teachers.keys() == {student.network for student in cells.models}
    for place, entry in cells.entries.items():
        assert place.student in cells.models
        assert (entry.outcome in cells.outcomes) == (place.method != "untouched")
    cells.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == FILE.read_bytes()
    assert {place.method for place in cells.entries} <= set(METHODS)


@pytest.fixture
def shown() -> Table:
    entries = {
        Place.of("untouched", FIRST, 10): Entry(10.0),
        Place.of("pointwise", FIRST, 500): Entry(92.0, 1.0, 3, (92.0, 93.0, 91.0), 3.0),
        Place.of("pointwise", SECOND, 10): Entry(20.0, refused="no closer"),
    }
    cells = Cells(entries, teachers={"vgg16": 93.0, "resnet20": 93.0})
    return Table((FIRST, SECOND), (10, 500), ("untouched", "pointwise"), cells)


def test_the_table(shown: Table) -> None:
    assert shown.markdown().splitlines() == [
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
        "† no student in one draw at least, the untouched one counts:",
        "",
        "- pointwise, resnet20 inner50, 10 samples: no closer",
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


def test_stale_entries_are_marked_and_listed(shown: Table) -> None:
    marked = replace(shown, stale={Place.of("pointwise", FIRST, 500)}).markdown().splitlines()
    assert "| VGG-16 `A` | 500 | 93.0 | 10.0 | 92.0 ± 1.0 ‡ |" in marked
    assert "- pointwise, vgg16 A, 500 samples" in marked


def test_the_summary_has_the_rows_of_one_number_of_samples(shown: Table) -> None:
    assert replace(shown, samples=(500,)).summary().splitlines() == [
        "Accuracy on the 10,000 test images of Fashion-MNIST, per cent, 500 samples; mean of 3"
        " draws of them, ± half their range:",
        "",
        "| student | teacher | untouched | pointwise |",
        "| --- | --- | --- | --- |",
        "| VGG-16 `A` | 93.0 | 10.0 | 92.0 ± 1.0 |",
        "| ResNet-20 `inner50` | 93.0 | - | - |",
    ]


def test_the_goals_are_judged(shown: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = [Goal("pointwise", FIRST, 500, gap) for gap in (0.9, 1.0)]
    goals += [Goal("pointwise", SECOND, 500, 1.0), Goal("auto", FIRST, 500, 1.0)]
    monkeypatch.setattr(table, "GOALS", goals)
    assert [line.split(":")[0] for line in shown.verdicts()] == ["- MISSED", "- met", "- open"]


def test_what_holds_in_every_row_is_judged(shown: Table) -> None:
    shown = replace(shown, methods=("untouched", "pointwise", "kernel", "auto"))
    known = shown.cells.entries
    assert [line.split(",")[0] for line in shown.promises()] == [
        "- met: in none of 1 entries worse than the untouched student"
    ]
    # Of different numbers of draws, those that all have count.
    known[Place.of("kernel", FIRST, 500)] = Entry(90.0)
    known[Place.of("auto", FIRST, 500)] = Entry(91.7)
    known[Place.of("auto", FIRST, 10)] = Entry(9.0)
    lines = list(shown.promises())
    assert "- met: auto" in lines[0]
    assert "each of 1 rows, is at worst 0.30 (vgg16 A, 500 samples)" in lines[0]
    assert "- MISSED: in none" in lines[1]
    assert "gains at least -1.00 (auto, vgg16 A, 10 samples)" in lines[1]
    known[Place.of("auto", FIRST, 500)] = Entry(91.35, 0.35, 2, (91.7, 91.0))
    assert "is at worst 0.30" in next(shown.promises())
    known[Place.of("kernel", FIRST, 500)] = Entry(90.0, 0.0, 2, (90.0, 90.0))
    assert "- MISSED: auto" in next(shown.promises())


def test_what_has_only_means_is_compared_by_them(shown: Table) -> None:
    shown = replace(shown, methods=("untouched", "pointwise", "kernel", "auto"))
    known = shown.cells.entries
    for method, mean in (("pointwise", 90.0), ("kernel", 91.0), ("auto", 90.8)):
        known[Place.of(method, FIRST, 500)] = Entry(mean, 0.5, 3)
    assert "is at worst 0.20" in next(shown.promises())
    known[Place.of("kernel", FIRST, 500)] = Entry(91.0)
    assert "rows" not in next(shown.promises())


def test_a_part_of_the_table_is_printed_with_its_command() -> None:
    text = "--networks resnet20,vgg16-D --samples 50,500 --methods auto,refine --section gradient"
    assert accuracy._asked_for(accuracy._arguments(["--known", *text.split()])) == f" {text}"
    assert accuracy._asked_for(accuracy._arguments(["--decomposed"])) == " --decomposed"
    assert accuracy._asked_for(accuracy._arguments([])) == ""


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n", encoding="utf-8")
    write_between(file, "speed", "new\n")
    expected = "before\n<!-- speed -->\nnew\n<!-- /speed -->\nafter\n"
    assert file.read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError, match="markers"):
        write_between(file, "results", "new\n")

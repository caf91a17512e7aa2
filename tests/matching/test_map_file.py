"""A map of pairs goes out, may be edited, and comes back; a wrong one is one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx import FitOptions, FitResult, RunOptions, fit
from fskd_onnx.errors import MatchError
from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes import Canonicalize
from fskd_onnx.pipeline.match import match
from fskd_onnx.reporting.json_format import matching_to_json
from fskd_onnx.results import BlockPair, Evidence, Matching
from tests.cli.test_contract import FEW, SAMPLES, TEACHER, assert_fails, fskd_onnx, said
from tests.helpers import DEMO, build
from tests.networks import NETWORKS
from tests.reports import read_report
from tests.students import with_noise

NETWORK = NETWORKS["residual"]
CPU = RunOptions(providers=("cpu",))


def graphs(teacher: onnx.ModelProto, student: onnx.ModelProto) -> tuple[gs.Graph, gs.Graph]:
    one, other = (gs.import_onnx(Canonicalize()(model).model) for model in (teacher, student))
    return one, other


def models() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return NETWORK.teacher(), NETWORK.student()


def write(path: Path, *pairs: object) -> Path:
    path.write_text(json.dumps({"pairs": list(pairs)}), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Partner]:
    return read_map(path, *graphs(*models()))


def matched(path: Path) -> dict[str, BlockPair]:
    pairs = match_models(*graphs(*models()), read(path)).pairs
    return {pair.student: pair for pair in pairs}


def essence(matching: Matching) -> list[BlockPair]:
    """Leave out how it was found, and how certain that was."""
    return [
        replace(p, evidence=Evidence.NONE, confidence=0.0, paired_by=Evidence.NONE)
        for p in matching.pairs
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_map_gives_the_same_matching(name: str, tmp_path: Path) -> None:
    both = graphs(NETWORKS[name].teacher(), NETWORKS[name].student())
    own = match_models(*both)
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(own), encoding="utf-8")
    again = match_models(*both, read_map(path, *both))
    assert essence(again) == essence(own)
    assert {pair.paired_by for pair in again.usable} == {"map"}
    assert {pair.evidence for pair in again.usable} == {"map"}
    assert {pair.confidence for pair in again.usable} == {1.0}
    path.write_text(matching_to_json(again), encoding="utf-8")
    assert match_models(*both, read_map(path, *both)) == again


@pytest.mark.parametrize(
    ("one", "other"), [("teacher", "student"), ("vgg16_small", "vgg16_small_D")]
)
def test_a_saved_map_of_trained_networks(one: str, other: str, tmp_path: Path) -> None:
    both = graphs(*(onnx.load(DEMO / f"{name}.onnx") for name in (one, other)))
    own = match_models(*both)
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(own), encoding="utf-8")
    assert essence(match_models(*both, read_map(path, *both))) == essence(own)


def test_reasons_and_open_channels_survive(tmp_path: Path) -> None:
    # Two nodes have a reason each; channels of the first are open.
    teacher = build("""g (float[N,3,4,4] x, float[4,4,1,1] v) => (float[N,4,4,4] z)
      <float[6,3,3,3] w, float[4,6,1,1] k> {
        [first] y = Conv <pads = [1,1,1,1]> (x, w)
        r = Relu (y)
        [second] s = Conv (r, k)
        [third] z = Conv (s, v)
    }""")
    student = build(
        """g (float[N,3,4,4] x, float[4,4,1,1] v) => (float[N,4,4,4] z)
      <float[5,3,3,3] w, float[4,5,1,1] k> {
        [first] y = Conv <pads = [1,1,1,1]> (x, w)
        r = Relu (y)
        [second] s = Conv (r, k)
        n = Neg (v)
        [third] z = Conv (s, n)
    }""",
        seed=4,
    )
    both = graphs(teacher, student)
    own = match_models(*both)
    assert own.pairs[0].channels is None
    assert own.pairs[2].reason
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(own), encoding="utf-8")
    assert essence(match_models(*both, read_map(path, *both))) == essence(own)


def test_blocks_that_a_map_does_not_name_are_matched_as_usual(tmp_path: Path) -> None:
    own = {p.student: p for p in match_models(*graphs(*models())).pairs}
    found = matched(write(tmp_path / "map.json", {"student": "c2", "teacher": "y2"}))
    assert (found["c2"].paired_by, found["c2"].evidence) == ("map", "weights")
    assert found["c2"].channels == own["c2"].channels
    assert {name: pair for name, pair in found.items() if name != "c2"} == {
        name: pair for name, pair in own.items() if name != "c2"
    }


def test_an_empty_map_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "map.json")
    assert read(path) == {}
    assert list(matched(path).values()) == list(match_models(*graphs(*models())).pairs)


def test_edited_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    entry = {"student": "c2", "teacher": "y2", "channels": [5, 0, 3]}
    found = matched(write(tmp_path / "map.json", entry))["c2"]
    assert (found.channels, found.evidence, found.confidence) == ((5, 0, 3), "map", 1.0)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [(None, "the map says so"), ("", "the map says so"), ("it is frozen", "it is frozen")],
)
def test_a_node_without_a_teacher_is_left_alone(
    reason: str | None, expected: str, tmp_path: Path
) -> None:
    entry = {"student": "c2", "teacher": None, "reason": reason}
    found = matched(write(tmp_path / "map.json", entry))
    assert (found["c2"].teacher, found["c2"].reason) == (None, expected)
    assert [name for name, pair in found.items() if pair.reason] == ["c2"]


def test_an_absent_teacher_is_none(tmp_path: Path) -> None:
    assert read(write(tmp_path / "map.json", {"student": "c2"}))["c2"].teacher is None


C2 = {"student": "c2", "teacher": "y2"}
BROKEN: dict[str, tuple[list[Any], str]] = {
    "no node": ([{"teacher": "y2"}], "a pair names no node of the student ('student')"),
    "no object": (["c2"], "a pair names no node of the student ('student'): 'c2'"),
    "number": ([{**C2, "student": 2}], "a pair names no node of the student ('student')"),
    "other node": (
        [{**C2, "student": "c9"}],
        "the student has no node 'c9' with weights; it has 'c1', 'c2', 'c3', 'c4'",
    ),
    "other output": (
        [{**C2, "teacher": "r2"}],
        "pairs 'c2' with 'r2', which is no block output of the teacher; "
        "it has 'y1', 'y2', 'y3', 'z'",
    ),
    "output is no name": ([{**C2, "teacher": ["y2"]}], "'c2'"),
    "twice": ([C2, C2], "pairs the node 'c2' twice; keep one of them"),
    "channels no list": (
        [{**C2, "channels": "012"}],
        "the channels of 'c2' are not a list of numbers",
    ),
    "channels no numbers": (
        [{**C2, "channels": [0, 1.5, 2]}],
        "the channels of 'c2' are not a list of numbers",
    ),
    "true is no channel": (
        [{**C2, "channels": [True, 0, 2]}],
        "the channels of 'c2' are not a list of numbers",
    ),
    "channel too large": (
        [{**C2, "channels": [0, 1, 6]}],
        "gives 'c2' the channel 6 of a teacher's block that has 0 to 5",
    ),
    "channel negative": (
        [{**C2, "channels": [0, 1, -1]}],
        "gives 'c2' the channel -1 of a teacher's block that has 0 to 5",
    ),
    "too few channels": ([{**C2, "channels": [0, 1]}], "gives 'c2' 2 channels; it has 3"),
    "channel twice": ([{**C2, "channels": [0, 1, 1]}], "gives 'c2' the channel 1 twice"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_map_says_wrong_is_named(fault: str, tmp_path: Path) -> None:
    pairs, sentence = BROKEN[fault]
    path = write(tmp_path / "map.json", *pairs)
    with pytest.raises(MatchError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert sentence in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "has no list 'pairs'; save a map with 'fskd-onnx match --json' and edit that"),
        ("{}", "has no list 'pairs'"),
        ('{"pairs": {}}', "has no list 'pairs'"),
        ('"pairs"', "has no list 'pairs'"),
    ],
)
def test_a_file_that_is_no_map(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MatchError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(MatchError, match="is not JSON"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MatchError, match="the map cannot be read: No such file"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(MatchError, match="the map cannot be read: Is a directory"):
        read(tmp_path)


def test_of_many_names_a_few_are_listed(tmp_path: Path) -> None:
    both = graphs(*(onnx.load(DEMO / f"{name}.onnx") for name in ("teacher", "student")))
    path = write(tmp_path / "map.json", {"student": "nobody", "teacher": None})
    with pytest.raises(MatchError) as caught:
        read_map(path, *both)
    assert str(caught.value).endswith(", ...")
    assert str(caught.value).count("'") == 12  # of nobody, and of five


def fitted(path: Path, **options: Any) -> FitResult:
    settings = FitOptions(CPU, map=str(path), **options)
    return fit(*models(), NETWORK.samples(56), settings)


def test_a_fit_leaves_alone_what_the_map_says(tmp_path: Path) -> None:
    result = fitted(write(tmp_path / "map.json", {"student": "c2", "teacher": None}))
    blocks = {block.student: block for block in result.report.blocks}
    assert (blocks["c2"].status, blocks["c2"].reason) == ("kept", "the map says so")
    assert any(block.status == "fitted" for block in blocks.values())
    before, after = (
        {t.name: t for t in model.graph.initializer} for model in (models()[1], result.model)
    )
    assert all(before[name] == after[name] for name in ("w2", "b2"))


def test_a_fit_aims_at_the_channels_of_the_map(tmp_path: Path) -> None:
    entry = {"student": "c2", "teacher": "y2", "channels": [4, 1, 2]}
    result = fitted(write(tmp_path / "map.json", entry), targets="kept")
    block = next(block for block in result.report.blocks if block.student == "c2")
    assert block.channels == (4, 1, 2)
    own = fitted(write(tmp_path / "own.json"), targets="kept")
    own_block = next(block for block in own.report.blocks if block.student == "c2")
    assert own_block.channels == (1, 2, 4)
    assert block.error_before is not None
    assert own_block.error_before is not None
    assert block.error_before > own_block.error_before


def test_a_map_of_all_channels_fits_as_without(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(match(*models())), encoding="utf-8")
    with_map = fitted(path)
    without = fit(*models(), NETWORK.samples(56), FitOptions(CPU))
    assert with_map.model.SerializeToString() == without.model.SerializeToString()


def test_a_map_that_leaves_nothing_to_fit_is_refused(tmp_path: Path) -> None:
    names = ("c1", "c2", "c3", "c4")
    path = write(tmp_path / "map.json", *({"student": n, "teacher": None} for n in names))
    with pytest.raises(MatchError, match="no block has a counterpart"):
        fitted(path)


def test_a_broken_map_stops_a_fit(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"pairs": [', encoding="utf-8")
    with pytest.raises(MatchError, match="is not JSON"):
        fitted(path)


def test_a_block_of_other_positions_is_kept(tmp_path: Path) -> None:
    network = NETWORKS["chain"]
    path = write(tmp_path / "map.json", {"student": "c1", "teacher": "y2"})
    settings = FitOptions(CPU, map=str(path))
    result = fit(network.teacher(), network.student(), network.samples(56), settings)
    block = next(block for block in result.report.blocks if block.student == "c1")
    assert block.status == "kept"
    assert block.reason == "its output has (6, 6) positions, the teacher's has (2, 2)"


def test_matching_takes_a_map_with_and_without_samples(tmp_path: Path) -> None:
    path = str(write(tmp_path / "map.json", {"student": "c2", "teacher": None}))
    for samples in (None, NETWORK.samples(20)):
        found = match(*models(), samples, CPU, path)
        reasons = {pair.student: pair.reason for pair in found.pairs}
        assert reasons == {"c1": "", "c2": "the map says so", "c3": "", "c4": ""}


def test_a_map_frees_a_student_that_matching_cannot_place(tmp_path: Path) -> None:
    # Two places for one node: the map says which.
    text = """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[6,3,3,3] w1, float[6,6,3,3] wl,
      float[6,6,3,3] wr, float[4,6,1,1] w3> {
        [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1)
        [left] yl = Conv <pads = [1,1,1,1]> (y1, wl)
        [right] yr = Conv <pads = [1,1,1,1]> (y1, wr)
        s = Add (yl, yr)
        [c3] z = Conv (s, w3)
    }"""
    only = """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[6,3,3,3] w1, float[6,6,3,3] wo,
      float[4,6,1,1] w3> {
        [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1)
        [only] yo = Conv <pads = [1,1,1,1]> (y1, wo)
        [c3] z = Conv (yo, w3)
    }"""
    both = graphs(build(text), build(only, seed=1))
    assert next(p for p in match_models(*both).pairs if p.student == "only").reason
    path = write(tmp_path / "map.json", {"student": "only", "teacher": "yr"})
    found = match_models(*both, read_map(path, *both))
    assert next(p for p in found.pairs if p.student == "only").teacher == "yr"


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_the_commands_save_and_take_a_map(tmp_path: Path) -> None:
    teacher, student, samples = (
        tmp_path / name for name in ("teacher.onnx", "student.onnx", "samples.npz")
    )
    for path, model in zip((teacher, student), models(), strict=True):
        onnx.save_model(model, path)
    np.savez(samples, x=NETWORK.samples(56)["x"])
    saved, again = tmp_path / "map.json", tmp_path / "again.json"
    done = fskd_onnx("match", teacher, student, "--json", saved)
    assert (done.returncode, said(done)) == (0, [])

    def leave_inner_alone(document: dict[str, Any]) -> None:
        entry = next(pair for pair in document["pairs"] if pair["student"] == "c2")
        entry["teacher"], entry["channels"] = None, None

    edited(saved, leave_inner_alone)
    done = fskd_onnx("match", teacher, student, "--map", saved, "--json", again)
    assert (done.returncode, said(done)) == (0, [])
    assert "the map says so" in done.stdout
    pairs = {p["student"]: p for p in json.loads(again.read_text(encoding="utf-8"))["pairs"]}
    assert [p["reason"] for p in pairs.values() if p["reason"]] == ["the map says so"]
    assert pairs["c2"]["teacher"] is None

    report = tmp_path / "report.json"
    options = ("--map", saved, "-o", tmp_path / "fused.onnx", "--report", report)
    done = fskd_onnx("fit", teacher, student, samples, *options)
    assert (done.returncode, said(done)) == (0, [])
    blocks = {b["student"]: b for b in read_report(report)["blocks"]}
    assert (blocks["c2"]["status"], blocks["c2"]["reason"]) == ("kept", "the map says so")
    assert any(block["status"] == "fitted" for block in blocks.values())


@pytest.mark.parametrize("command", ["fit", "match"])
def test_a_broken_map_is_one_line_and_exit_status_1(command: str, tmp_path: Path) -> None:
    path = write(tmp_path / "map.json", {"student": "nobody", "teacher": None})
    samples = (SAMPLES, *FEW, "-o", tmp_path / "fused.onnx") if command == "fit" else ()
    done = fskd_onnx(command, TEACHER, DEMO / "student.onnx", *samples, "--map", path)
    assert_fails(done, 1, path, "'nobody'")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [path]


def test_a_map_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.json"
    done = fskd_onnx("match", TEACHER, DEMO / "student.onnx", "--map", path)
    assert_fails(done, 1, path)


def test_noise_does_not_come_between_a_map_and_its_channels(tmp_path: Path) -> None:
    teacher, student = models()
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(match(teacher, student)), encoding="utf-8")
    both = graphs(teacher, with_noise(student, 0.5))
    found = match_models(*both, read_map(path, *both))
    assert [p.channels for p in found.pairs] == [p.channels for p in match(teacher, student).pairs]
    assert np.all([p.evidence == "map" for p in found.pairs])


def test_a_name_of_several_nodes_is_refused_and_the_keys_are_taken(tmp_path: Path) -> None:
    # x ─▶ Conv "one" ─▶ a ─▶ Relu ─▶ Conv "a" ─▶ b ─▶ Relu ─▶ Conv "twin" ─▶ c ─▶ Conv "twin" ─▶ z
    model = build("""g (float[N,4,4,4] x) => (float[N,4,4,4] z) <float[4,4,1,1] w1,
      float[4,4,1,1] w2, float[4,4,1,1] w3, float[4,4,1,1] w4> {
        [one] a = Conv (x, w1)
        p = Relu (a)
        [a] b = Conv (p, w2)
        q = Relu (b)
        [twin] c = Conv (q, w3)
        r = Relu (c)
        [twin] z = Conv (r, w4)
    }""")
    both = graphs(model, model)
    for name, keys in (("a", "'one', 'b'"), ("twin", "'c', 'z'")):
        path = write(tmp_path / "map.json", {"student": name, "teacher": "a"})
        with pytest.raises(MatchError) as caught:
            read_map(path, *both)
        sentence = f"'{name}' names 2 nodes of the student; name one of them by {keys}"
        assert str(caught.value) == f"{path}: {sentence}"
    entries = [{"student": "b", "teacher": "b"}, {"student": "one", "teacher": "a"}]
    path = write(tmp_path / "map.json", *entries)
    found = match_models(*both, read_map(path, *both))
    assert {p.student: p.teacher for p in found.pairs} == {
        "one": "a",
        "b": "b",
        "c": "c",
        "z": "z",
    }


def test_branches_that_were_merged_may_be_left_alone_and_no_more(tmp_path: Path) -> None:
    both, summed = graphs(*models()), {"small": "c2"}
    path = write(tmp_path / "map.json", C2, {"student": "small", "teacher": None})
    assert list(read_map(path, *both, summed)) == ["c2"]
    path = write(tmp_path / "map.json", {"student": "small", "teacher": "y2"})
    with pytest.raises(MatchError) as caught:
        read_map(path, *both, summed)
    sentence = "pairs 'small', which is summed with 'c2', where the teacher has one node"
    assert str(caught.value) == f"{path}: {sentence}; pair 'c2' with that"

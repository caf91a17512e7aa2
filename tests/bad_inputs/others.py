"""Bad labels, groups, maps and outputs, and options that cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bad_inputs.row import COMPARE, FIT, MATCH, SAMPLES, Row, Table

ROWS: list[Row] = []


def _nothing(folder: Path) -> None:
    pass


def _writes(name: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return spoil


def _links(name: str, target: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if target == "fifo":
            os.mkfifo(folder / name)
        elif target == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to(target)

    return spoil


def _saves(name: str, array: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        if name.endswith(".npz"):
            np.savez(folder / name, **array)  # type: ignore[arg-type]
        else:
            np.save(folder / name, np.asarray(array), allow_pickle=True)

    return spoil


# --- labels ---


_labels = Table(ROWS, (*COMPARE, "--labels", "labels.txt"))


def _label(name: str, spoil: Callable[[Path], None], *words: str, file: str = "labels.txt") -> None:
    _labels.add(f"labels-{name}", spoil, file, *words, arguments=(*COMPARE, "--labels", file))


_label("missing", _nothing, "does not exist", file="nowhere.txt")
_label("of-an-unknown-kind", _nothing, ".npy", file="teacher.onnx")
_label("too-few", _writes("labels.txt", "1\n2\n"), "2 labels for 24 samples")
_label("too-many", _writes("labels.txt", "1\n" * 99), "99 labels")
_label("empty", _writes("labels.txt", ""), "0 labels")
_label("of-words", _writes("labels.txt", "cat\n" * SAMPLES), "line 1", "cat")
_label("of-fractions", _writes("labels.txt", "1\n2.5\n" * 12), "line 2")
_label("of-huge-numbers", _writes("labels.txt", "9" * 5000 + "\n"), "line 1")
_label("of-other-bytes", _writes("labels.txt", b"\xff\xfe1\n"))
_label("of-controls", _writes("labels.txt", "\x1b[2J\n" * SAMPLES), "line 1")
_label("of-a-table", _writes("l.csv", "0,cat\n" * SAMPLES), "line 1", file="l.csv")
_label("of-two-axes", _saves("l.npy", np.ones((SAMPLES, 3), int)), "(24, 3)", file="l.npy")
_label("of-floats", _saves("l.npy", np.ones(SAMPLES)), "float64", file="l.npy")
_label("of-objects", _saves("l.npy", np.array([{}])), "pickled", file="l.npy")
_label("of-strings", _saves("l.npy", ["a"] * SAMPLES), "<U1", file="l.npy")
_label("not-in-the-archive", _saves("l.npz", {"a": np.ones(3)}), "labels=", file="l.npz")
_label("twice-in-the-archive", _saves("l.npz", {"a": [1], "b": [2]}), "labels=", file="l.npz")
_label("as-fifo", _links("labels.txt", "fifo"), "named pipe")
_label("as-zeros", _links("labels.txt", "/dev/zero"), "device")
_label("as-noise", _links("l.npy", "/dev/urandom"), "device", file="l.npy")
_label("as-folder", _links("labels.txt", "folder"))
_label("negative-class", _writes("labels.txt", "-1\n" * SAMPLES))
ROWS.pop()  # classes that no output has are wrong answers


# --- groups ---


def _group(name: str, spoil: Callable[[Path], None], *words: str, file: str = "groups.txt") -> None:
    Table(ROWS).add(f"groups-{name}", spoil, *words, arguments=(*FIT, "--groups", file))


_group("missing", _nothing, "nowhere.txt", "does not exist", file="nowhere.txt")
_group("too-few", _writes("groups.txt", "a\n"), "groups.txt", "1 groups for 24 samples")
_group("with-a-gap", _writes("groups.txt", "a\n\nb\n"), "groups.txt", "line 2")
_group("of-one", _writes("groups.txt", "a\n" * SAMPLES), "samples.npy", "groups")
_group("of-floats", _saves("g.npy", np.ones(SAMPLES)), "g.npy", "float64", file="g.npy")
_group("of-two-axes", _saves("g.npy", [[1, 2]]), "g.npy", "(1, 2)", file="g.npy")
_group("of-objects", _saves("g.npy", np.array([None])), "g.npy", "pickled", file="g.npy")
_group("of-other-bytes", _writes("groups.txt", b"\xff" * 99), "groups.txt")
_group("as-fifo", _links("groups.txt", "fifo"), "groups.txt", "named pipe")
_group("as-zeros", _links("groups.txt", "/dev/zero"), "groups.txt", "device")
_group("as-folder", _links("groups.txt", "folder"), "groups.txt")
_group("in-subfolders-of-a-file", _nothing, "subfolders", file="folders")


# --- maps ---


def _map(name: str, content: str | bytes, *words: str) -> None:
    Table(ROWS).add(
        f"map-{name}",
        _writes("map.json", content),
        "map.json",
        *words,
        arguments=(*MATCH, "--map", "map.json"),
    )


def _pairs(name: str, pairs: object, *words: str) -> None:
    _map(name, json.dumps({"pairs": pairs}), *words)


def _first(**entries: object) -> list[object]:
    return [{"student": "first", "teacher": "a", **entries}]


_map("empty", "", "is not JSON")
_map("of-text", "first: a", "is not JSON")
_map("of-other-bytes", b"\xff\xfe\x00", "is not JSON")
_map("cut", '{"pairs": [{"student"', "is not JSON")
_map("deep", "[" * 100000 + "]" * 100000, "nest")
_map("deep-in-a-pair", '{"pairs": [{"student": ' + "[" * 5000 + "]" * 5000 + "}]}")
_map("a-list", "[]", "no list 'pairs'")
_map("a-number", "1e999", "no list 'pairs'")
_map("nan", "NaN", "no list 'pairs'")
_map("null", "null", "no list 'pairs'")
_map("huge-number", "9" * 10000, "map.json")
_map(
    "huge-channel",
    '{"pairs": [{"student": "first", "teacher": "a", "channels": [' + "9" * 4000 + "]}]}",
)
_map("twice-a-key", '{"pairs": [], "pairs": 7}', "pairs")
_pairs("of-a-text", "first", "no list 'pairs'")
_pairs("of-numbers", [1, 2], "names no node")
_pairs("without-student", [{"teacher": "a"}], "names no node")
_pairs("student-a-number", [{"student": 7}], "names no node")
_pairs("unknown-student", [{"student": "wobble", "teacher": "a"}], "wobble", "first")
_pairs("unknown-teacher", _first(teacher="wobble"), "wobble")
_pairs("teacher-a-list", _first(teacher=["a"]), "first")
_pairs("node-twice", _first() * 2, "first", "twice")
_pairs("channels-of-text", _first(channels="0123"), "first", "numbers")
_pairs("channels-of-fractions", _first(channels=[0.5, 1, 2, 3]), "first", "numbers")
_pairs("channels-of-truths", _first(channels=[True, False, 2, 3]), "first", "numbers")
_pairs("channels-too-few", _first(channels=[0]), "first", "1 channel")
_pairs("channels-too-large", _first(channels=[0, 1, 2, 6]), "first", "channel 6")
_pairs("channels-negative", _first(channels=[0, 1, 2, -1]), "first", "channel -1")
_pairs("channels-twice", _first(channels=[0, 1, 1, 2]), "first", "channel 1 twice")
_pairs("name-with-controls", [{"student": "\x1b[2J\n", "teacher": "a"}], "\\x1b[2J")

for _target, _word in (("fifo", "named pipe"), ("/dev/zero", "device"), ("folder", "directory")):
    Table(ROWS).add(
        f"map-as-{_target.replace('/', '-').strip('-')}",
        _links("map.json", _target),
        "map.json",
        _word,
        arguments=(*FIT, "--map", "map.json"),
    )
Table(ROWS).add("map-missing", _nothing, "nowhere.json", arguments=(*FIT, "--map", "nowhere.json"))


# --- outputs ---


def _output(name: str, path: str, *words: str, spoil: Callable[[Path], None] = _nothing) -> None:
    Table(ROWS).add(f"output-{name}", spoil, *words, arguments=(*FIT[:-1], path))


_output("in-a-missing-folder", "nowhere/fused.onnx", "nowhere")
_output("that-is-a-folder", "fused.onnx", "fused.onnx", spoil=_links("fused.onnx", "folder"))
_output("that-is-a-device", "/dev/null", "/dev/null")
_output("in-a-file", "labels.txt/fused.onnx", "labels.txt")
_output("of-a-long-name", "f" * 300 + ".onnx", "fff")
_output("that-is-a-fifo", "fused.onnx", "fused.onnx", spoil=_links("fused.onnx", "fifo"))
_output("that-is-empty", "", "")
Table(ROWS).add(
    "json-in-a-missing-folder", _nothing, "nowhere", arguments=(*MATCH, "--json", "nowhere/m.json")
)
Table(ROWS).add(
    "report-in-a-missing-folder",
    _nothing,
    "nowhere",
    arguments=(*FIT, "--report", "nowhere/r.json"),
)
Table(ROWS).add(
    "log-in-a-missing-folder", _nothing, "nowhere", arguments=(*FIT, "--log-file", "nowhere/l.txt")
)


@Table(ROWS, ("fit", "bad\udcff.onnx", *FIT[2:]))("no such file", "bad")
def name_in_other_bytes(folder: Path) -> None:
    pass


@Table(ROWS, ("fit", "teacher.onnx", "bad\udcff.onnx", *FIT[3:]))("is not an ONNX file", "bad")
def name_of_a_bad_file_in_other_bytes(folder: Path) -> None:
    (folder / "bad\udcff.onnx").write_text("nothing")


@Table(ROWS, ("fit", "a\x1b[2J\nb.onnx", *FIT[2:]))("no such file", "\\x1b")
def name_with_controls(folder: Path) -> None:
    pass


@Table(ROWS, ("fit", "a" * 5000, *FIT[2:]))("name too long")
def long_name_of_a_model(folder: Path) -> None:
    pass


@Table(ROWS, ("fit", *FIT[1:3], "a" * 5000, "-o", "fused.onnx"))("aaa")
def long_name_of_samples(folder: Path) -> None:
    pass


# --- wrong usage ---


def _usage(name: str, *options: str, words: tuple[str, ...] = ()) -> None:
    row = Table(ROWS, status=2)
    row.add(f"usage-{name}", _nothing, *(words or options[:1]), arguments=(*FIT, *options))


_usage("batch-of-0", "--batch-size", "0")
_usage("batch-of-text", "--batch-size", "many")
_usage("batch-of-a-fraction", "--batch-size", "1.5")
_usage("no-samples", "--max-samples", "0")
_usage("negative-seed", "--seed", "-1")
_usage("seed-of-text", "--seed", "x")
_usage("unknown-adapter", "--adapter", "wobble")
_usage("unknown-targets", "--targets", "wobble")
_usage("unknown-solver", "--solver", "wobble")
_usage("unknown-moves", "--augment", "wobble", words=("wobble",))
_usage("huge-crop", "--crop", "9" * 30, words=("crop",))
_usage("no-copies", "--augment-copies", "0")
_usage("negative-refine", "--refine", "-1")
_usage("refine-of-a-fraction", "--refine", "1.5")
_usage("no-providers", "--providers", "")
_usage("memory-of-text", "--memory-limit", "much")
_usage("negative-memory", "--memory-limit", "-5GB")
_usage("unknown-preset", "--preprocess", "wobble", words=("wobble",))
_usage("mean-of-text", "--mean", "a,b,c")
_usage("mean-of-two", "--mean", "1,2", words=("mean",))
_usage("mean-nan", "--mean", "nan", words=("mean",))
_usage("std-of-0", "--std", "0", words=("std",))
_usage("scale-of-0", "--scale", "0", words=("scale",))
_usage("scale-infinite", "--scale", "inf", words=("scale",))
_usage("unknown-layout", "--layout", "WOBBLE", words=("layout",))
_usage("resize-of-0", "--resize", "0", words=("resize",))
_usage("resize-of-text", "--resize", "9x")
_usage("crop-of-three", "--crop", "1x2x3")
_usage("unknown-channel-order", "--channel-order", "GRB", words=("channel-order",))
_usage("unknown-report", "--report", "r.pdf", words=("r.pdf",))
_usage("unknown-option", "--wobble", words=("--wobble",))
Table(ROWS, ("fit", "teacher.onnx"), 2).add("usage-missing-arguments", _nothing, "STUDENT")
Table(ROWS, ("wobble",), 2).add("usage-unknown-command", _nothing, "wobble")
Table(ROWS, (*FIT, "--providers", "wobble")).add("unknown-provider", _nothing, "wobble", "cpu")

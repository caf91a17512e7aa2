"""Unusable arguments of the functions raise the errors and the sentences of the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fskd_onnx import (
    FitOptions,
    FskdError,
    ModelError,
    OptionError,
    Preprocess,
    PreprocessError,
    RunOptions,
    SamplesError,
    compare,
    compress,
    fit,
    match,
)
from fskd_onnx.options import MOVE_NAMES
from fskd_onnx.runtime import providers
from fskd_onnx.samples.augment import MOVES
from tests.bad_inputs.row import write_good_files
from tests.helpers import build

MODEL = build("g (float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul (x, w) }")
SAMPLES = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
FUNCTIONS: tuple[Callable[..., Any], ...] = (fit, match, compare)


class Reader:
    """Gives anything as a batch, once."""

    def __init__(self, batch: object) -> None:
        self.batches = [batch]

    def get_next(self) -> Any:
        return self.batches.pop() if self.batches else None


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "model",
    [None, 7, 1.5, True, b"teacher.onnx", [MODEL], {}, SAMPLES, MODEL.graph, MODEL.graph.node[0]],
    ids=lambda model: type(model).__name__,
)
def test_what_is_no_model_is_refused_by_its_role(
    function: Callable[..., Any], model: object
) -> None:
    word = type(model).__name__
    with pytest.raises(
        ModelError, match=rf"^the teacher cannot be read from a {word}; give a path"
    ):
        function(model, MODEL, SAMPLES)
    with pytest.raises(
        ModelError, match=rf"^the student cannot be read from a {word}; give a path"
    ):
        function(MODEL, model, SAMPLES)


@pytest.mark.parametrize("teacher", [None, 7, b"teacher.onnx", SAMPLES])
def test_a_compression_starts_from_a_model(teacher: Any) -> None:
    with pytest.raises(ModelError, match=r"^the teacher cannot be read from a "):
        compress(teacher)


@pytest.mark.parametrize("options", [7, RunOptions(), FitOptions(), {}])
def test_options_of_a_compression_are_of_their_own_type(options: Any) -> None:
    with pytest.raises(OptionError, match=r"^options must be CompressOptions\(\.\.\.\), not "):
        compress(MODEL, SAMPLES, options)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (onnx.ModelProto(), "a model in memory: holds no graph"),
        ("", "is a folder; give an ONNX file"),
        ("nowhere.onnx", "nowhere.onnx: there is no such file"),
        (Path("nowhere.onnx"), "nowhere.onnx: there is no such file"),
        ("a\0b", "no name of a file"),
    ],
)
def test_what_holds_no_model_is_named(function: Callable[..., Any], model: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        function(MODEL, model, SAMPLES)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (7, "cannot be read from a int"),
        (b"samples.npy", "cannot be read from a bytes"),
        (SAMPLES.tolist(), "cannot be read from a list"),
        ("nowhere", "nowhere: does not exist"),
        ("a\0b", "does not exist"),
        ({}, "has no array for the model's input 'x'"),
        ({"z": SAMPLES, "q": SAMPLES}, "has no array for the model's input 'x'"),
        ({1: SAMPLES}, "no arrays by input name"),
        ({"x": [[1, 2, 3], [1]]}, "several lengths"),
        ({"x": None}, "is a single value"),
        (SAMPLES.astype(object), "holds object"),
        (SAMPLES.astype(str), "holds <U32"),
        (SAMPLES.astype(complex), "holds complex128"),
        (SAMPLES[:0], "holds no samples"),
        (SAMPLES[:, :2], "has shape"),
        (np.float32(3), "cannot be read from a float32"),
        (np.full_like(SAMPLES, np.nan), "sample 0: holds NaN"),
        (Reader(SAMPLES), "no arrays by input name"),
        (Reader([1]), "no arrays by input name"),
        (Reader({}), "holds no samples"),
        (object(), "cannot be read from a object"),
    ],
)
def test_what_is_no_samples_is_refused(
    function: Callable[..., Any], samples: Any, words: str
) -> None:
    # A reader gives its batches once.
    again = Reader(samples.batches[0]) if isinstance(samples, Reader) else samples
    with pytest.raises(SamplesError, match=words):
        function(MODEL, MODEL, again)


@pytest.mark.parametrize("function", [fit, compare])
def test_samples_are_no_option(function: Callable[..., Any]) -> None:
    with pytest.raises(SamplesError, match="cannot be read from a NoneType"):
        function(MODEL, MODEL, None)


@pytest.mark.parametrize(("function", "wrong"), [(fit, RunOptions()), (match, FitOptions())])
@pytest.mark.parametrize("options", [7, "cpu", {"seed": 1}, None])
def test_options_are_of_their_own_type(
    function: Callable[..., Any], wrong: object, options: object
) -> None:
    with pytest.raises(OptionError, match=r"^options must be (Fit|Run)Options\(\.\.\.\), not "):
        function(MODEL, MODEL, SAMPLES, wrong if options is None else options)


def _each(name: str, values: Sequence[object], words: str) -> list[tuple[str, object, str]]:
    return [(name, value, words) for value in values]


RUN: tuple[tuple[str, object, str], ...] = (
    *(
        (name, value, f"{name} must be")
        for name in ("max_samples", "batch_size")
        for value in (0, -1, 1.5, True, "7", SAMPLES, [3])
    ),
    *_each("seed", (-1, None, 0.5, "x", False), "seed must be"),
    *_each("memory_limit", (-1, 1e9, "2GB", True), "memory_limit must be"),
    *(
        ("providers", value, "providers must be a tuple of names such as \\('cpu',\\)")
        for value in ("cpu", None, 7, (7,), ("",), {"cpu"}, [None])
    ),
    ("providers", (), "providers must name at least one"),
    *_each("preprocess", (None, "imagenet", {}), "preprocess must be"),
    *(
        ("groups", value, "groups must be")
        for value in (7, True, {"a": 1}, [1.5], [[1], [2]], [None], np.ones(3), b"groups.txt", "")
    ),
)


@pytest.mark.parametrize(("name", "value", "words"), RUN)
def test_impossible_run_options_are_refused_at_once(name: str, value: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"^{words}") as caught:
        RunOptions(**{name: value})
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


FIT: tuple[tuple[str, object, str], ...] = (
    *(
        (name, value, f"{name} must be {known}")
        for name, known in (
            ("adapter", "auto, pointwise, kernel or factors"),
            ("targets", "auto, kept or select"),
            ("solver", "numpy or torch"),
            ("optimizer", "bcd or sgd"),
        )
        for value in ("wobble", "", None, 7, ["auto"])
    ),
    ("augment", ("wobble",), "augment must be flip, shift, crop or rotate, not 'wobble'"),
    *_each("augment", ("flip", None, 7, (7,)), "augment must be a tuple"),
    *_each("augment_copies", (0, 1.5, True, None), "augment_copies must be"),
    *_each("refine", (-1, 1.5, True, None), "refine must be"),
    *_each("map", (7, b"map.json", {}, ""), "map must be the path of a file"),
    *_each("run", (None, 7, FitOptions()), "run must be RunOptions"),
)


@pytest.mark.parametrize(("name", "value", "words"), FIT)
def test_impossible_fit_options_are_refused_at_once(name: str, value: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"^{words}"):
        FitOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("mean", "std")
            for value in (0.5, "0.5", (None,), ("a",), (True,))
        ),
        *(("scale", value) for value in ("1", True, [1], 1j, 10**400)),
        *(
            (name, value)
            for name in ("resize", "crop")
            for value in ("9", 1.5, True, (1, 2, 3), (1.5, 2), 10**30)
        ),
        *((name, 7) for name in ("preset", "layout", "channel_order")),
    ],
)
def test_impossible_values_of_images_are_refused_at_once(name: str, value: Any) -> None:
    with pytest.raises(PreprocessError, match=name):
        Preprocess(**{name: value})


@pytest.mark.parametrize("labels", [7, b"labels.txt", [1, 2], np.ones(5), "", "a\0b"])
def test_labels_are_a_path(labels: Any) -> None:
    with pytest.raises(OptionError, match=r"^labels must be the path of a file"):
        compare(MODEL, MODEL, SAMPLES, None, labels)


@pytest.mark.parametrize("block_map", [7, b"map.json", {"pairs": []}, ""])
def test_a_map_is_a_path(block_map: Any) -> None:
    with pytest.raises(OptionError, match=r"^map must be the path of a file"):
        match(MODEL, MODEL, block_map=block_map)


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(FskdError, match="'wobble' is not part of the installed ONNX Runtime"):
        compare(MODEL, MODEL, SAMPLES, RunOptions(("wobble",)))


def test_values_of_numpy_and_paths_are_as_good_as_others(tmp_path: Path) -> None:
    write_good_files(tmp_path)
    run = RunOptions(
        providers=["cpu"],  # type: ignore[arg-type]
        max_samples=np.int64(9),  # type: ignore[arg-type]
        seed=np.uint8(3),  # type: ignore[arg-type]
        groups=tmp_path / "groups.txt",  # type: ignore[arg-type]
    )
    assert run.groups == str(tmp_path / "groups.txt")
    assert RunOptions(groups=np.array([1, 2])).groups == (1, 2)  # type: ignore[arg-type]
    assert RunOptions(groups=np.array(["a", "b"])).groups == ("a", "b")  # type: ignore[arg-type]
    files = (tmp_path / "teacher.onnx", tmp_path / "student.onnx", tmp_path / "samples.npy")
    assert compare(*files, run, tmp_path / "labels.txt").count == 9


def test_the_names_of_moves_are_those_that_there_are() -> None:
    assert tuple(MOVES) == MOVE_NAMES


def test_telemetry_is_switched_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append(None))
    providers._send_no_telemetry.cache_clear()
    runtime = providers.open_runtime(["cpu"])
    for _ in range(2):
        runtime.session(build("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"))
    assert calls == [None]

"""Where samples lie is found from two runs that share some, and what mixes samples is found out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, Runs, SampleAxis
from tests.helpers import Array

COUNT = 40
SAMPLES = np.random.default_rng(0).standard_normal((COUNT, 6, 5)).astype(np.float32)

HOW: dict[str, tuple[Callable[[Array], Array], FoundAxis]] = {
    "first": (lambda x: x, SampleAxis()),
    "second": (lambda x: x.swapaxes(0, 1), SampleAxis(1)),
    "last": (lambda x: np.moveaxis(x, 0, 2), SampleAxis(2)),
    "in front of it one": (lambda x: x[np.newaxis], SampleAxis(1)),
    "rows": (lambda x: x.reshape(-1, 5), SampleAxis(0, 6)),
    "rows, interleaved": (lambda x: x.swapaxes(0, 1).reshape(-1, 5), SampleAxis(0, 6, True)),
    "rows on another axis": (
        lambda x: np.moveaxis(x, 2, 0).reshape(5, -1),
        SampleAxis(1, 6),
    ),
    "rows on another axis, interleaved": (
        lambda x: np.moveaxis(x, 0, 2).reshape(6, -1),
        SampleAxis(1, 5, True),
    ),
    "a number": (lambda x: x[:, 0, 0], SampleAxis()),
    "classes": (lambda x: x[:, 0].argmax(1), SampleAxis()),
    "all equal": (lambda x: np.zeros((len(x), 3), np.float32), SampleAxis()),
    "half precision": (lambda x: x.astype(np.float16).swapaxes(0, 1), SampleAxis(1)),
    "rounded": (lambda x: x * np.float32(1 + 1e-7 * len(x)), SampleAxis()),
    "a table": (lambda _: SAMPLES[0], Failing.CONSTANT),
    "a table with as many rows": (lambda _: SAMPLES[:8], Failing.CONSTANT),
    "a mean over samples": (lambda x: x.mean(0), Failing.MIXED),
    "beside a mean": (lambda x: x + 3 * x.mean(0), Failing.MIXED),
    "between samples": (lambda x: x[:, 0] @ x[:, 0].T, Failing.MIXED),
    "along samples": (lambda x: np.cumsum(x, axis=0), Failing.MIXED),
    "one number": (lambda x: x.sum(), Failing.MIXED),
    "no rows": (lambda x: np.zeros((0, len(x))), Failing.ROWS_FROM_DATA),
    "some rows": (lambda x: x[x[:, 0, 0] > 0], Failing.ROWS_FROM_DATA),
    "text": (lambda x: np.array(["a"] * len(x), object), Failing.NO_NUMBERS),
}


def found(
    make: Callable[[Array], Array], first: list[int], fixed: bool, samples: Array = SAMPLES
) -> FoundAxis:
    others = [number for number in range(len(samples)) if number not in first][:1]
    runs = Runs.plan(first, others, [samples[[*first, *others]]], fixed, ())
    assert not fixed or len(runs.first) == len(runs.second)
    one, other = (np.asarray(make(samples[list(part)])) for part in (runs.first, runs.second))
    return runs.compare(one, other)


# By two runs these may look like one another, but never like samples.
ALIKE = {"some rows", "between samples"}


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("how", HOW)
def test_any_number_of_samples(how: str, size: int) -> None:
    make, expected = HOW[how]
    got = found(make, list(range(size)), fixed=False)
    assert isinstance(got, Failing) if how in ALIKE else got == expected


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("how", [how for how in HOW if how != "all equal"])
def test_one_number_of_samples(how: str, size: int) -> None:
    make, expected = HOW[how]
    got = found(make, list(range(size)), fixed=True)
    if how == "classes":  # of a few samples they may all be the same
        assert got in (expected, Failing.CONSTANT)
        return
    assert isinstance(got, Failing) if how in ALIKE else got == expected


@pytest.mark.parametrize("how", HOW)
def test_a_batch_of_one_is_the_sample(how: str) -> None:
    make, expected = HOW[how]
    got = found(make, [0], fixed=True)
    if isinstance(expected, SampleAxis) and how != "all equal":
        assert got == SampleAxis(rows=len(make(SAMPLES[:1])))
    elif expected is Failing.MIXED:
        assert isinstance(got, SampleAxis)
    elif how != "some rows":
        assert isinstance(got, Failing)


def test_samples_that_are_equal_say_nothing_of_constants() -> None:
    same = np.repeat(SAMPLES[:1], 5, axis=0)
    for size in (1, 2, 4):
        assert isinstance(found(lambda x: x, list(range(size)), True, same), SampleAxis)


@pytest.mark.parametrize("first", [[0, 0, 0, 0], [0, 0], [0, 1, 0, 1]])
def test_padding_repeats_samples(first: list[int]) -> None:
    for how in ("first", "second", "rows", "rows, interleaved", "a table", "a mean over samples"):
        make, expected = HOW[how]
        assert found(make, first, fixed=True) == expected


def test_scales_of_the_batch_are_forgiven_where_the_network_takes_them() -> None:
    def quantized(x: Array) -> Array:
        scale = np.abs(x).max() / 20
        return np.asarray(np.round(x / scale) * scale).swapaxes(0, 1)

    x = SAMPLES * np.linspace(1, 3, COUNT, dtype=np.float32)[:, np.newaxis, np.newaxis]
    for operators, expected in ((("DynamicQuantizeLinear",), SampleAxis(1)), ((), Failing.MIXED)):
        first = list(range(30))
        runs = Runs.plan(first, [39], [x[[*first, 39]]], False, operators)
        one, other = (quantized(x[list(part)]) for part in (runs.first, runs.second))
        assert runs.compare(one, other) == expected


@pytest.mark.parametrize(
    "how", [how for how, (_, axis) in HOW.items() if isinstance(axis, SampleAxis)]
)
def test_rows_of_a_sample_follow_each_other(how: str) -> None:
    make, axis = HOW[how]
    assert isinstance(axis, SampleAxis)
    tensor = make(SAMPLES)
    first, apart = axis.first(tensor), axis.by_sample(tensor)
    assert len(first) == COUNT * axis.rows
    assert len(apart) == COUNT
    np.testing.assert_array_equal(first.reshape(COUNT, -1), apart.reshape(COUNT, -1))
    one = axis.by_sample(make(SAMPLES[7:8]))
    if how != "rounded":
        np.testing.assert_array_equal(apart[7:8], one)

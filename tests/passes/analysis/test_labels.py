"""Labels move as NumPy moves the elements that they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.passes.analysis.labels import UNKNOWN, Indices, Labels

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)


def along(shape: Sequence[int], axis: int) -> Labels:
    return Labels.along(np.arange(shape[axis]) + 10, len(shape), axis)


def spread(labels: Labels, shape: Sequence[int]) -> Indices:
    """Give every element its label."""
    return np.broadcast_to(labels.channels, shape)


@st.composite
def regrouped(draw: st.DrawFn, shape: Sequence[int]) -> list[int]:
    """Draw another shape of as many elements."""
    primes = [p for extent in shape for p in {4: [2, 2], 6: [2, 3], 1: []}.get(extent, [extent])]
    factors = draw(st.permutations([*primes, 1]))
    borders = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=3)))
    pairs = itertools.pairwise([0, *borders, len(factors)])
    return [math.prod(factors[slice(*pair)]) for pair in pairs]


@given(st.data(), SHAPES)
def test_reshape(data: st.DataObject, old: list[int]) -> None:
    axis = data.draw(st.integers(0, len(old) - 1))
    new = data.draw(regrouped(old))
    labels = along(old, axis)
    found = labels.reshaped(tuple(old), tuple(new))
    assert found is not None
    np.testing.assert_array_equal(spread(found, new), spread(labels, old).reshape(new))
    again = found.reshaped(tuple(new), tuple(old))
    assert again is not None
    np.testing.assert_array_equal(spread(again, old), spread(labels, old))


@given(st.data(), SHAPES)
def test_an_extent_that_is_not_known_makes_no_wrong_label(
    data: st.DataObject, rest: list[int]
) -> None:
    samples = data.draw(st.integers(2, 5))
    new = data.draw(regrouped([samples, *rest]))
    place = data.draw(st.integers(0, len(new) - 1))
    labels = along([samples, *rest], data.draw(st.integers(1, len(rest))))
    unknown = tuple(None if axis == place else extent for axis, extent in enumerate(new))
    found = labels.reshaped((None, *rest), unknown)
    if found is not None:
        expected = spread(labels, [samples, *rest]).reshape(new)
        np.testing.assert_array_equal(spread(found, new), expected)


@given(st.data(), SHAPES, SHAPES)
def test_what_is_in_front_of_equal_axes_may_be_anything(
    data: st.DataObject, front: list[int], behind: list[int]
) -> None:
    samples = data.draw(st.integers(2, 5))
    others = data.draw(regrouped([samples, *front]))
    new = [*others, *data.draw(regrouped(behind))]
    old = [samples, *front, *behind]
    axis = data.draw(st.integers(len(old) - len(behind), len(old) - 1))
    unknown: list[int | None] = [None, *front]
    if data.draw(st.booleans()):
        unknown[1 + data.draw(st.integers(0, len(front) - 1))] = None
    labels = along(old, axis)
    # Of all these extents none is known, in the new shape either.
    found = labels.reshaped((*unknown, *behind), (*[None] * len(others), *new[len(others) :]))
    expected = spread(labels, old).reshape(new)
    if found is not None:
        np.testing.assert_array_equal(spread(found, new), expected)
    known = all(extent > 1 for extent in (*behind, *new[len(others) :]))
    assert found is not None or not known


def test_the_rows_of_tokens_carry_their_channels() -> None:
    labels = along((1, 7, 12), 2)
    rows = labels.reshaped((None, 7, 12), (None, 12))
    assert rows is not None
    assert rows.channels.tolist() == [list(range(10, 22))]
    heads = rows.reshaped((None, 12), (None, 7, 3, 4))
    assert heads is not None
    assert heads.axes == {2, 3}
    assert heads.channels.reshape(-1).tolist() == list(range(10, 22))
    assert along((1, 7, 12), 1).reshaped((None, 7, 12), (None, 12)) is None


@given(st.data(), SHAPES)
def test_transpose(data: st.DataObject, shape: list[int]) -> None:
    labels = along(shape, data.draw(st.integers(0, len(shape) - 1)))
    order = data.draw(st.permutations(range(len(shape))))
    new = [shape[axis] for axis in order]
    found = spread(labels.transposed(order), new)
    np.testing.assert_array_equal(found, spread(labels, shape).transpose(order))


def test_axes_are_inserted_and_removed() -> None:
    labels = along((2, 3), 1)
    assert labels.with_axes([1, 3]).shape == (1, 1, 3, 1)
    assert labels.with_axes([1, 3]).axes == {2}
    back = labels.with_axes([0, 3]).without_axes([0, 3])
    assert back is not None
    assert back.shape == (1, 3)
    assert back.axes == {1}
    assert labels.without_axes([1]) is None
    assert labels.of_rank(4).axes == {3}
    single = labels.taken(1, np.array([1])).at_single(1)
    assert (single.channels.tolist(), single.axes) == ([11], frozenset())


def test_what_is_taken_or_added() -> None:
    labels = along((2, 4), 1)
    assert labels.taken(1, np.array([3, 0])).channels.tolist() == [[13, 10]]
    assert labels.taken(0, np.array([0])) is labels
    assert labels.padded(1, 1, -2).channels.tolist() == [[UNKNOWN, 10, 11]]
    assert labels.padded(0, 1, 1) is labels


def test_what_differs_in_its_axes_is_not_appended() -> None:
    one, other = along((2, 3, 4), 1), along((2, 3, 4), 2)
    joined = one.concatenated([one], 1)
    assert joined is not None
    assert joined.channels.reshape(-1).tolist() == [10, 11, 12] * 2
    assert one.concatenated([other], 1) is None
    assert one.concatenated([one], 2) is None


def test_labels_of_each_element_of_an_axis() -> None:
    labels = along((2, 2, 3), 1).reshaped((2, 2, 3), (2, 6))
    assert labels is not None
    found = labels.along_axis(1, 6)
    assert found is not None
    assert found[..., 0].tolist() == [[10, 10, 10, 11, 11, 11], [0, 1, 2, 0, 1, 2]]
    assert labels.along_axis(1, 5) is None
    assert labels.along_axis(0, 2) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [((2, 6), (-3, -2, 2)), ((4, 0, 3), (0, 5)), ((2, 3), (-1, -6))],
)
def test_no_label_goes_through_an_extent_that_none_has(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    assert along((2, 2), 0).reshaped(old, new) is None

"""Work in several threads is that one by one; small systems keep BLAS to one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fskd_onnx.linalg import threads
from fskd_onnx.linalg.backends import Backend, backend, solved_by
from fskd_onnx.linalg.threads import parallel_map, threads_for


def set_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pretend that BLAS was set to so many threads."""
    controller, _ = threads._blas()
    monkeypatch.setattr(threads, "_blas", lambda: (controller, count))


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_items(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(monkeypatch, count)

    def work(item: int) -> tuple[int, Backend]:
        return item * item, backend()

    expected = [(item * item, backend()) for item in range(40)]
    assert list(parallel_map(work, list(range(40)))) == expected
    with threads_for(10):
        assert list(parallel_map(work, list(range(40)))) == expected
        assert list(parallel_map(work, iter(range(40)))) == expected
        assert list(parallel_map(work, [3])) == [expected[3]]
        assert list(parallel_map(work, [])) == []


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_made_one_after_another_is_not_held(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(monkeypatch, count)
    events: list[str] = []

    def made() -> Iterator[int]:
        for item in range(3):
            events.append(f"made {item}")
            yield item

    with threads_for(10):
        for item in parallel_map(lambda item: item, made()):
            events.append(f"done {item}")
    assert events == [f"{event} {item}" for item in range(3) for event in ("made", "done")]


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_in_the_work_is_heard(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(monkeypatch, count)
    with pytest.raises(ZeroDivisionError), threads_for(10):
        list(parallel_map(lambda item: 1 // item, [2, 1, 0, 1]))


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threads._blas()[0].info()}


def test_small_systems_are_computed_in_one_thread() -> None:
    outside = blas_threads()
    with threads_for(10):
        assert blas_threads() == {1}
    assert blas_threads() == outside
    with pytest.raises(ZeroDivisionError), threads_for(10):
        _ = 1 / 0
    assert blas_threads() == outside
    with threads_for(10**6):
        assert blas_threads() == outside
    with solved_by("torch"), threads_for(10):
        assert blas_threads() == outside

"""Work in several threads is that one by one, and BLAS keeps to one thread meanwhile."""

from __future__ import annotations

import threading
import time
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


@pytest.mark.parametrize("count", [1, 3])
def test_work_may_divide_itself(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(monkeypatch, count)

    def work(item: int) -> int:
        return sum(parallel_map(lambda other: item * other, list(range(5))))

    with threads_for():
        assert list(parallel_map(work, list(range(9)))) == [10 * item for item in range(9)]
        # What is divided afterwards has all threads again.
        barrier = threading.Barrier(count)
        list(parallel_map(lambda _: barrier.wait(10), list(range(count))))


def test_what_has_not_begun_when_one_fails_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(monkeypatch, 2)
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(item)

    with threads_for():
        with pytest.raises(ZeroDivisionError):
            list(parallel_map(work, list(range(1000))))
        assert len(done) < 1000
        list(parallel_map(lambda _: None, [1, 2]))  # behind all that has begun
        assert len(done) < 1000


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threads._blas()[0].info()}


def test_blas_keeps_to_one_thread() -> None:
    outside = blas_threads()
    with threads_for():
        assert blas_threads() == {1}
    assert blas_threads() == outside
    with pytest.raises(ZeroDivisionError), threads_for():
        _ = 1 / 0
    assert blas_threads() == outside


@pytest.mark.parametrize(
    ("count", "of_blas", "workers"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 3, 1), (16, 15, 1)]
)
def test_large_systems_are_for_blas_where_it_has_several_threads(
    count: int, of_blas: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(monkeypatch, count)
    with threads_for(10**6):
        assert blas_threads() == {of_blas}
        assert threads._WORKERS.get() == workers
        with threads_for(10):
            assert blas_threads() == {1}
            assert threads._WORKERS.get() == count
        assert blas_threads() == {of_blas}


def test_work_is_not_divided_where_the_solver_divides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(monkeypatch, 3)
    with solved_by("torch"), threads_for():
        here = threading.get_ident()
        assert set(parallel_map(lambda _: threading.get_ident(), [1, 2, 3])) == {here}

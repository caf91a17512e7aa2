"""A limit of memory without room for the program is refused; within another one it works."""

from __future__ import annotations

import pytest

from fskd_onnx.cli import memory_limit
from fskd_onnx.errors import FskdError


def test_a_limit_that_is_too_low_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    least = memory_limit.least_memory()
    monkeypatch.setattr(memory_limit, "_limit", lambda: least - 1)
    with pytest.raises(FskdError, match=r"raise the limit \(ulimit -v\)"):
        memory_limit.prepare_for_memory_limit()


@pytest.mark.parametrize("more", [None, 0])
def test_other_limits_are_not(monkeypatch: pytest.MonkeyPatch, more: int | None) -> None:
    limit = None if more is None else memory_limit.least_memory() + more
    monkeypatch.setattr(memory_limit, "_limit", lambda: limit)
    memory_limit.prepare_for_memory_limit()

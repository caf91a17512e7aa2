"""What does not fit into memory is done again with fewer samples per run, which is said once."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fskd_onnx import (
    CompressOptions,
    FitOptions,
    OutOfMemoryError,
    RunOptions,
    compare,
    compress,
    fit,
    match,
)
from fskd_onnx.errors import ModelError, SamplesError
from fskd_onnx.runtime import segment_runner, session_run, whole_network
from fskd_onnx.runtime.out_of_memory import is_out_of_memory, with_enough_memory
from tests.networks import NETWORKS
from tests.students import with_noise

CHAIN = NETWORKS["chain"]
RUNTIME_SAYS = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv "
    "node. Name:'c' Status Message: /bfc_arena.cc:358 void* onnxruntime::BFCArena::Allocate() "
    "Failed to allocate memory for requested buffer of size 67108864"
)

Work = Callable[[RunOptions], Any]
WORK: dict[str, Work] = {
    "fit": lambda run: fit(*_models(), CHAIN.samples(200), FitOptions(run)),
    "match": lambda run: match(*_models(), CHAIN.samples(200), run),
    "compare": lambda run: compare(*_models(), CHAIN.samples(200), run),
    "compress": lambda run: compress(
        CHAIN.teacher(), CHAIN.samples(200), CompressOptions(run, dry_run=True)
    ),
}


def _models() -> tuple[Any, Any]:
    """Give networks whose channels only activations tell."""
    return CHAIN.teacher(), with_noise(CHAIN.student(), 1.5)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Gives a function that sets how many samples fit into memory, and a list of what was run."""
    run = session_run.run

    def allow(most: int) -> list[int]:
        seen: list[int] = []

        def limited(session: Any, feeds: Any, *rest: Any) -> Any:
            size = max(value.shape()[0] for value in feeds.values())
            seen.append(size)
            if size > most:
                raise RuntimeError(RUNTIME_SAYS)
            return run(session, feeds, *rest)

        for module in (whole_network, segment_runner):
            monkeypatch.setattr(module, "run", limited)
        return seen

    return allow


@pytest.mark.parametrize("command", WORK)
def test_the_work_is_done_again_with_half_as_many_samples(
    sizes: Callable[[int], list[int]], caplog: pytest.LogCaptureFixture, command: str
) -> None:
    expected, seen = WORK[command](RunOptions(("cpu",))), sizes(9)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fskd_onnx"):
        found = WORK[command](RunOptions(("cpu",)))
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(said) == 1
    assert "--batch-size" in said[0]
    assert any(size > 9 for size in seen)
    last = max(at for at, size in enumerate(seen) if size > 9)
    assert 4 < max(seen[last + 1 :]) <= 9
    if command == "fit":
        assert found.report.after.relative_mse == pytest.approx(
            expected.report.after.relative_mse, rel=1e-3
        )
    elif command == "compress":
        assert [u.after for u in found.plan.units] == [u.after for u in expected.plan.units]
    elif command == "match":
        assert [p.channels for p in found.pairs] == [p.channels for p in expected.pairs]
    else:
        assert found.agreement.relative_mse == pytest.approx(expected.agreement.relative_mse)


@pytest.mark.parametrize("command", WORK)
def test_what_the_user_has_chosen_stands(
    sizes: Callable[[int], list[int]], caplog: pytest.LogCaptureFixture, command: str
) -> None:
    sizes(9)
    with pytest.raises(OutOfMemoryError, match="to run 16 samples at once; give a smaller"):
        WORK[command](RunOptions(("cpu",), batch_size=16))
    assert "memory" not in caplog.text


@pytest.mark.parametrize("command", WORK)
def test_what_does_not_fit_one_by_one_is_an_error(
    sizes: Callable[[int], list[int]], command: str
) -> None:
    seen = sizes(0)
    with pytest.raises(OutOfMemoryError, match="however few samples") as caught:
        WORK[command](RunOptions(("cpu",)))
    assert seen[-1] == 1
    assert "\n" not in str(caught.value)


def test_a_reader_of_batches_is_read_once(sizes: Callable[[int], list[int]]) -> None:
    class Reader:
        def __init__(self) -> None:
            self.batches = [CHAIN.samples(200)]

        def get_next(self) -> dict[str, Any] | None:
            if not self.batches:
                return None
            samples = self.batches.pop()
            return samples if isinstance(samples, dict) else {"x": samples}

    sizes(9)
    assert fit(*_models(), Reader(), FitOptions(RunOptions(("cpu",)))).report.sample_count == 200


def test_other_errors_pass() -> None:
    def fail() -> None:
        raise KeyError("out")

    with pytest.raises(KeyError):
        with_enough_memory(fail, None)


def test_work_without_batches_is_not_repeated() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        np.empty(2**60, np.uint8)

    with pytest.raises(OutOfMemoryError):
        with_enough_memory(fail, None)
    assert calls == [1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError(RUNTIME_SAYS), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Invalid rank for input: x"), False),
        (SamplesError("out of memory.npy: there is no such file"), False),
    ],
)
def test_failed_allocations_are_told_from_others(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    wrapped = ModelError("a.onnx: cannot be run")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected

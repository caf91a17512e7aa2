"""A signal waits for the end of what it must not divide."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fskd_onnx.cli.signals import Signalled, SignalsUnwind
from fskd_onnx.serialization.atomic_files import OutputFiles
from fskd_onnx.serialization.deferred_signals import deferred_signals


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Let Python handle the signals: a process in the background starts with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handled_afterwards(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(Signalled), SignalsUnwind():
        with deferred_signals():
            signal.raise_signal(number)
            steps.append("done")
        steps.append("not reached")
    assert steps == ["done"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", ["replace", "link", "unlink"])
def test_files_appear_together_whenever_a_signal_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, call: str
) -> None:
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place in places:
        place.write_text("old")
    original = getattr(os, call)

    def interrupted(*arguments: object, **more: object) -> None:
        original(*arguments, **more)
        signal.raise_signal(number)

    with pytest.raises(Signalled), SignalsUnwind(), OutputFiles() as files:
        for place in places:
            files.write_text(place, "new")
        monkeypatch.setattr(os, call, interrupted)
    assert {place.read_text() for place in places} in ({"old"}, {"new"})
    assert sorted(tmp_path.iterdir()) == places

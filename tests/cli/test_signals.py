"""Signals end the program with one line and their status, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fskd_onnx.cli.signals import Signalled, SignalsUnwind

NUMBERS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture(autouse=True)
def sigint_is_heard() -> Iterator[None]:
    """A process that is started ignores SIGINT if its parent does, as jobs in the background do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("module", ["typer", "numpy", "rich.console", "fskd_onnx.cli.app"])
def test_a_signal_while_modules_are_loaded(number: signal.Signals, module: str) -> None:
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
from fskd_onnx.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    status, word = NUMBERS[number]
    assert (done.returncode, done.stderr, done.stdout) == (status, f"error: {word}\n", "")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_a_finalizer_is_not_lost(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(number)

    handler = signal.getsignal(number)
    with pytest.raises(Signalled) as caught, SignalsUnwind():
        Finalized()
        while True:
            pass
    assert (caught.value.status, caught.value.word) == NUMBERS[number]
    assert signal.getsignal(number) == handler
    assert capsys.readouterr().err == ""


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalsUnwind():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

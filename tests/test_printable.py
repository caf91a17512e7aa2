"""Names are data: what is shown of them is text on one line."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.printable import LineFormatter, MessageFormatter, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1", "conv1"),
        ("größer, 畳み込み", "größer, 畳み込み"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202eright to left", r"\u202eright to left"),
        ("a\u2028b", r"a\u2028b"),
        ("bad\udcff.onnx", r"bad\udcff.onnx"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_any_text_is_shown_on_one_line(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(character.isprintable() or character.isspace() for character in shown) or any(
        not character.isprintable() for character in text
    )
    assert printable(shown) == shown
    shown.encode()


def record(message: str) -> logging.LogRecord:
    try:
        int("cause")
    except ValueError:
        return logging.LogRecord("n", logging.INFO, "f.py", 1, message, None, sys.exc_info())
    raise AssertionError


def test_a_terminal_gets_the_message_and_a_file_the_traceback_as_well() -> None:
    assert MessageFormatter().format(record("a\x1bb\nc")) == r"a\x1bb\nc"
    line, *traceback = (
        LineFormatter("%(levelname)s %(message)s").format(record("a\nb")).splitlines()
    )
    assert line == r"INFO a\nb"
    assert traceback[-1].startswith("ValueError: ")

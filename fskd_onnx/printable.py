"""Text of files, models and users, as it may be shown: on one line, without control characters.

Names are data: one with an escape sequence in it must not speak to a terminal, one with a newline
must not look like another line of a table.
"""

from __future__ import annotations

import logging
import unicodedata

# Controls, formats (such as those that turn the direction of writing), halves of surrogate pairs,
# and what ends a line or a paragraph.
_NOT_SHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return a text with an escape, as in Python, for each character that is not to be shown."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _NOT_SHOWN
        else character
        for character in text
    )


def shortened(text: str, longest: int = 80) -> str:
    """Return a text from a file as messages quote it: its beginning, where it is long."""
    return text if len(text) <= longest else f"{text[:longest]}..."


class MessageFormatter(logging.Formatter):
    """Formats a record as its message, on one line, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message; a traceback is for files."""
        return printable(record.getMessage())


class LineFormatter(logging.Formatter):
    """Formats a record as a line whose message is printable, and a traceback behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's own name
        """Return the line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

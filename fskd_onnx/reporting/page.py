"""What a page of a report consists of; the template shows it, ``page_content.py`` fills it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fskd_onnx.reporting.pictures import Panel

UNKNOWN = "\N{EN DASH}"
"""In place of a figure that there is not."""


@dataclass(frozen=True)
class Tile:
    """A figure of the result.

    Attributes:
        label: what it is.
        after: the figure.
        before: what it was; empty where there is nothing to compare with.
        note: what else there is to know of it.
    """

    label: str
    after: str
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        sort: what it is sorted by where that is a number; None sorts by the text.
        detail: what it shows on demand.
        note: what it shows below its text.
    """

    text: str
    sort: float | None = None
    detail: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its header.
        is_number: whether it is aligned to the right and sorted by number.
    """

    label: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered.

    Attributes:
        title: above it.
        note: below the title.
        columns: the first of them counts the rows, the second names them.
        rows: the kind of each row, by which a reader filters, and its cells.
    """

    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]

    @property
    def kinds(self) -> Mapping[str, int]:
        """The kinds of its rows, each with their number."""
        kinds = [kind for kind, _ in self.rows]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True)
class Reasons:
    """What was left alone, by reason.

    Attributes:
        title: what the names are of.
        names: names by reason.
    """

    title: str
    names: Mapping[str, Sequence[str]]

    @classmethod
    def group(cls, title: str, reasons: Iterable[tuple[str, str]]) -> Reasons:
        """Return each reason once, with the names that it holds for."""
        names: dict[str, list[str]] = {}
        for name, reason in reasons:
            names.setdefault(reason, []).append(name)
        return cls(title, names)


@dataclass(frozen=True)
class Sample:
    """A sample on which the student errs.

    Attributes:
        name: the last part of its name.
        path: its whole name.
        error: on it.
        before: the same before a fit; empty where there was none.
        picture: address of its picture; empty where it is no image.
    """

    name: str
    path: str
    error: str
    before: str
    picture: str


@dataclass(frozen=True)
class Page:
    """All of a page.

    Attributes:
        title: of the document.
        headline: the result, in one line.
        tiles: its figures.
        panels: of its picture.
        caption: below the picture.
        tables: of blocks, of units.
        reasons: what was left alone and why.
        samples: the worst, the worst first.
        notes: what else there is to know, a sentence each.
        facts: how it was made, each by its name; code where it is to be copied.
        options: all that were chosen, by name.
    """

    title: str
    headline: str
    tiles: Sequence[Tile]
    panels: Sequence[Panel]
    caption: str
    tables: Sequence[Table]
    reasons: Sequence[Reasons]
    samples: Sequence[Sample]
    notes: Sequence[str]
    facts: Mapping[str, str]
    options: Mapping[str, str]

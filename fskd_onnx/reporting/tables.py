"""Tables, reasons and facts on a terminal: what all reports are printed with.

80 columns are enough. What goes to a pipe is plain ASCII but for names, one row a line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fskd_onnx.printable import printable

NOT_KNOWN = "-"
"""In place of a figure that there is not."""

_THOUSAND = 1000.0
_PREFIXES = ("", "k", "M", "G", "T")
_ELLIPSIS = "..."
_LEAST_NAME = 8


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[str],
    names: Collection[str],
    console: Console,
) -> None:
    """Print a table without lines.

    Names are cut in the middle where a row does not fit; a pipe, which has no width, gets them
    whole.

    Args:
        headers: of its columns.
        rows: its cells.
        numbers: headers of the columns that are aligned to the right.
        names: headers of the columns of names of nodes.
        console: where to.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headers, *cells, strict=True)]
    cut = [headers.index(name) for name in names]
    excess = sum(widths) + len(widths) - console.width
    while excess > 0 and max(widths[column] for column in cut) > _LEAST_NAME:
        widths[max(cut, key=widths.__getitem__)] -= 1
        excess -= 1
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in numbers else "left"
        table.add_column(header, justify=justify, no_wrap=True)
    for row in cells:
        # As Text, because names of nodes may hold brackets, which strings would lose as markup.
        table.add_row(
            *(Text(cut_in_middle(cell, width)) for cell, width in zip(row, widths, strict=True))
        )
    console.print(table)


def cut_in_middle(text: str, width: int) -> str:
    """Return a text with an ellipsis in its middle where it takes more cells than a width."""
    if cell_len(text) <= width:
        return text
    kept = width - len(_ELLIPSIS)
    while True:
        front = (kept + 1) // 2
        found = f"{text[:front]}{_ELLIPSIS}{text[len(text) - kept // 2 :]}"
        if cell_len(found) <= width or kept <= 1:
            return found
        kept -= 1


def print_reasons(title: str, reasons: Iterable[tuple[str, str]], console: Console) -> None:
    """Print each reason once, with the nodes that it holds for."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons:
        nodes.setdefault(reason, []).append(node)
    if not nodes:
        return
    console.print()
    console.print(Text(title))
    for reason, names in nodes.items():
        console.print(Text(printable(f"  {', '.join(names)}: {reason}"), overflow="fold"))


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print names and what is known of each, in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(Text(name), Text(printable(fact)))
    console.print(grid)


def number(value: float | None) -> str:
    """Return a number as people read it."""
    return NOT_KNOWN if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Return a fraction as a percentage."""
    return NOT_KNOWN if value is None else f"{value:.1%}"


def short(count: float) -> str:
    """Return a large number in three digits: 31.0M."""
    if count < _THOUSAND:
        return f"{count:.0f}"
    power = 0
    while count >= _THOUSAND - 0.5 and power < len(_PREFIXES) - 1:
        count, power = count / _THOUSAND, power + 1
    return f"{count:.3g}{_PREFIXES[power]}" if count < 100 else f"{count:.0f}{_PREFIXES[power]}"

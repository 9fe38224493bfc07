"""Tables as HTML, in notebooks and reports. What names say is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Protocol


class Table(str):
    """A table as text, which a notebook shows as HTML."""

    html: str

    def __new__(cls, text: str, html: str) -> Table:
        made = super().__new__(cls, text)
        made.html = html
        return made

    def above(self, lines: Iterable[str]) -> Table:
        """It, with lines of text below."""
        lines = list(lines)
        said = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return Table("\n".join([self, *lines]), self.html + said)

    def _repr_html_(self) -> str:
        return self.html


class _HasTable(Protocol):
    def table(self) -> Table: ...


class InNotebooks:
    """What a notebook shows by its ``table()``; what has none to show yet, by its ``repr``."""

    __slots__ = ()

    def _repr_html_(self: _HasTable) -> str | None:
        try:
            return self.table().html
        except (RuntimeError, ValueError):
            return None


def table(
    rows: Sequence[Sequence[str]],
    align: str = "",
    is_bad: Callable[[Sequence[str]], bool] = lambda row: False,
) -> str:
    """Rows as a table, the first of them its head.

    Args:
        rows: cells, of text.
        align: "<" or ">" for each column; else as the page has it.
        is_bad: of a row, whether it is of the class ``bad``.
    """
    styles = [_STYLES[side] for side in align] or [""] * len(rows[0])
    head, *body = rows
    lines = [f"<tr>{_cells('th', head, styles)}</tr>"]
    for row in body:
        lines.append(f"<tr{' class=bad' * is_bad(row)}>{_cells('td', row, styles)}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


_STYLES = {"<": ' style="text-align:left;white-space:pre"', ">": ' style="text-align:right"'}
"""Names may be indented, below their heading."""


def _cells(kind: str, row: Sequence[str], styles: Sequence[str]) -> str:
    return "".join(f"<{kind}{style}>{escape(one)}</{kind}>" for one, style in zip(row, styles))

"""Plain text tables for a terminal of 80 columns, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH = 80

_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def table(
    rows: Sequence[Sequence[str]], align: str, *, total: bool = False, width: int = WIDTH
) -> str:
    """Rows as text, the first of them the header, under which a rule is drawn.

    Args:
        rows: cells; all rows have ``len(align)`` of them.
        align: "<" or ">" for each column.
        total: draws a second rule above the last row.
        width: columns of the terminal; the first column is shortened in its middle to fit.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    gaps = 2 * (len(align) - 1)
    widths[0] = max(8, min(widths[0], width - gaps - sum(widths[1:])))
    lines = []
    for row in rows:
        cells = [shorten(row[0], widths[0]), *row[1:]]
        padded = [f"{cell:{side}{size}}" for cell, side, size in zip(cells, align, widths)]
        lines.append("  ".join(padded).rstrip())
    rule = "-" * (sum(widths) + gaps)
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def pairs(values: Mapping[str, object], indent: int = 0) -> str:
    """A mapping as lines ``key  value``; mappings and lists inside it are indented below their key."""
    room = max((len(str(key)) for key, value in values.items() if not _nested(value)), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [" " * indent + str(key), pairs(value, indent + 2)]
        elif isinstance(value, (list, tuple, set, frozenset)):
            lines.append(f"{' ' * indent}{key!s:{room}}  {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{' ' * indent}{key!s:{room}}  {_word(value)}")
    return "\n".join(lines)


def shorten(name: str, width: int) -> str:
    """The name, with its middle replaced by an ellipsis where it is longer than ``width``.

    >>> shorten("model.layers.weight", 11)
    'model…eight'
    """
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return name[:head] + "…" + name[len(name) - (width - 1 - head) :]


def count(number: int) -> str:
    """A count in at most six characters.

    >>> count(950), count(1_235_814_400), count(2048)
    ('950', '1.236G', '2048')
    """
    for unit, letter in _UNITS:
        if number >= 10 * unit or number >= unit > 1000:
            return f"{number / unit:.4g}{letter}"
    return str(number)


def _nested(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _word(value: object) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)

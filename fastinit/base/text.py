"""Plain text tables for a terminal of 80 columns, and how numbers are written in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from fastinit.base import html, number

WIDTH = 80

_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def table(
    rows: Sequence[Sequence[str]],
    align: str,
    *,
    total: bool = False,
    width: int = WIDTH,
    fit: Callable[[str, int], str] | None = None,
) -> html.Table:
    """Rows as text, the first of them the header, under which a rule is drawn.

    Args:
        rows: cells; all rows have ``len(align)`` of them.
        align: "<" or ">" for each column.
        total: draws a second rule above the last row.
        width: columns of the terminal; what does not fit into the first column has lines of its own.
        fit: of a first cell and the columns that there are for it, what stands there in a terminal.
    """
    as_html = html.table(rows, align)
    rows = [[_on_one_line(cell) for cell in row] for row in rows]
    if fit is not None:
        space = room([row[1:] for row in rows], width)
        rows = [[fit(row[0], space), *row[1:]] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    widths[0] = max(8, min(widths[0], room([row[1:] for row in rows], width)))
    rule = "-" * (sum(widths) + 2 * (len(align) - 1))
    lines = []
    for place, row in enumerate(rows):
        if place == 1 or (total and place == len(rows) - 1):
            lines.append(rule)
        first = row[0]
        if len(first) > widths[0]:
            lines += [first[start : start + width] for start in range(0, len(first), width)]
            first = ""
        padded = [f"{c:{side}{size}}" for c, side, size in zip((first, *row[1:]), align, widths)]
        if line := "  ".join(padded).rstrip():
            lines.append(line)
    return html.Table("\n".join(lines), as_html)


def _on_one_line(cell: str) -> str:
    """Without what moves a terminal's cursor, which a module's name may have."""
    return cell if cell.isprintable() else "".join(c if c.isprintable() else " " for c in cell)


def room(rows: Sequence[Sequence[str]], width: int = WIDTH) -> int:
    """The columns that are left of a table's first, if these are the cells of the others."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return width - sum(widths) - 2 * len(widths)


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


def counted(noun: str, number: int) -> str:
    """How many there are.

    >>> counted("shard", 1), counted("shard", 2000)
    ('1 shard', '2,000 shards')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _nested(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _word(value: object) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def parse_size(size: int | str, what: str = "shard size") -> int:
    """A number of bytes: an int, or a text with its unit: ``"5GB"`` (10^9), ``"500MB"``, ``"2GiB"``.

    >>> parse_size("1.5GB")
    1500000000
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]I?B)\s*", size.upper())
        bytes_ = Fraction(found[1]) * _BYTES[found[2]] if found else Fraction(0)
    else:
        bytes_ = Fraction(number.integer(what, size))
    if bytes_ < 1:
        number.out_of_range(what, "as in 5GB, 500MB or 2GiB", size)
    return int(bytes_)


def listing(noun: str, names: Sequence[str]) -> str:
    """The names after their noun.

    >>> listing("parameter", ["a", "b"])
    'parameters a, b'
    """
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def reasons(noted: Sequence[tuple[str, str]], missing: Mapping[str, str]) -> list[str]:
    """:func:`notes`, as lines below a table."""
    return [textwrap.fill(said, WIDTH, subsequent_indent="  ") for said in notes(noted, missing)]


def notes(noted: Sequence[tuple[str, str]], missing: Mapping[str, str]) -> list[str]:
    """What is to be said of layers: each note, and why others are missing, with the names it is of.

    Args:
        noted: name and note of each layer; "" where there is none.
        missing: by name, why it was not measured.
    """
    names: dict[str, list[str]] = {}
    for name, note in noted:
        if note:
            names.setdefault(note, []).append(name or "the model")
    for name, why in missing.items():
        names.setdefault(f"not measured: {why}", []).append(name or "the model")
    lines = []
    for why, who in names.items():
        every = len(who) == len(noted) > 1
        lines.append(f"{why}: {f'all {len(who)} layers' if every else ', '.join(who)}")
    return lines


def abbreviated(name: str, room: int) -> str:
    """A dotted name with its first words cut to a letter, as many as it takes to fit.

    >>> abbreviated("transformer.h.11.attn.c_proj", 20)
    't.h.11.attn.c_proj'
    """
    words = name.split(".")
    for i, word in enumerate(words[:-1]):
        if len(".".join(words)) <= room:
            break
        words[i] = word if word.isdigit() else word[:1]
    return ".".join(words)

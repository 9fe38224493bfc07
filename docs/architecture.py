"""``python docs/architecture.py``: the picture in docs/architecture.md, drawn from the imports.

Prints Mermaid text: a box for each room, an arrow to each that it imports. With ``--write`` it replaces
the picture in the page. An arrow that goes without saying is left out: to a room that one of its others
imports already.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "fastinit"
PAGE = Path(__file__).with_name("architecture.md")

MERMAID = re.compile(r"```mermaid\n.*?```", re.DOTALL)
"""Where a page has the picture."""

FLOORS = (
    "base",
    "elements",
    "stream",
    "backends",
    "fills",
    "init",
    "statistics",
    "plan",
    "record",
    "recipes",
    "variance",
    "checkpoint",
    "frameworks",
    "command",
    "patching",
    "fastinit",
)
"""Rooms, and modules that are a room of their own, from the bottom to what users call by name."""


class Import(NamedTuple):
    """One module of the package imports another."""

    module: str
    imported: str
    line: int
    late: bool
    """Within a function: when that is called."""
    typing: bool
    """For types alone."""

    def __str__(self) -> str:
        return f"{self.module} -> {self.imported}"


def name_of(path: Path) -> str:
    """A file's module, without the package: ``plan.write``, ``init``; the package itself is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room that a module is in.

    >>> room_of("backends.triton.fill"), room_of("init"), room_of("__main__"), room_of("")
    ('backends', 'init', 'command', 'fastinit')
    """
    first = module.partition(".")[0]
    return {"": "fastinit", "__main__": "command"}.get(first, first)


def modules() -> dict[str, Path]:
    """All modules by name, without the native one."""
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports() -> Iterator[Import]:
    """All that a module of the package imports of the package."""
    known = modules()
    for name, path in known.items():
        yield from _imports(name, ast.parse(path.read_text(encoding="utf-8")), known)


def _imports(name: str, tree: ast.Module, known: dict[str, Path]) -> Iterator[Import]:
    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{name} has a relative import in line {node.lineno}")
            root, _, inside = (node.module or "").partition(".")
            if root == PACKAGE.name:
                for alias in node.names:
                    full = f"{inside}.{alias.name}".lstrip(".")
                    yield Import(name, full if full in known else inside, node.lineno, late, typing)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                root, _, inside = alias.name.partition(".")
                if root == PACKAGE.name:
                    yield Import(name, inside, node.lineno, late, typing)
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for (
                child
            ) in node.body:  # the package's own are what it imports when it is asked for them
                yield from visit(child, late or not name, bool(name))
            for child in node.orelse:
                yield from visit(child, late, typing)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late, typing)

    yield from visit(tree, False, False)


def arrows() -> dict[str, list[str]]:
    """What each room imports, from the top; without what goes without saying."""
    direct: dict[str, set[str]] = {room: set() for room in reversed(FLOORS)}
    for found in imports():
        here, there = room_of(found.module), room_of(found.imported)
        if here != there and not found.typing:
            direct[here].add(there)

    def below(room: str) -> set[str]:
        return direct[room].union(*map(below, direct[room]))

    return {
        room: sorted(some - set().union(*map(below, some)), key=FLOORS.index, reverse=True)
        for room, some in direct.items()
    }


def picture() -> str:
    """The rooms and their arrows, as Mermaid text."""
    shown = [f"  {room} --> {other}" for room, others in arrows().items() for other in others]
    return "\n".join(["flowchart TD", *shown])


WRITTEN = 'fill="currentColor" stroke="none" text-anchor="middle" font-size="15"'


def drawing() -> str:
    """The same as SVG, in the colour of the text around it: for pages that know no Mermaid."""
    shown, width, height = arrows(), 520, 66

    def floor(room: str) -> int:
        return 1 + max(map(floor, shown[room])) if shown[room] else 0

    # An arrow over several floors has a place on each, so that it meets no box.
    ways = [
        [room, *(f"{room} {other} {n}" for n in range(floor(room) - 1, floor(other), -1)), other]
        for room, others in shown.items()
        for other in others
    ]
    top, at = max(map(floor, shown)), dict[str, tuple[float, float]]()
    for level in range(top, -1, -1):
        inside = {
            way[floor(way[0]) - level] for way in ways if floor(way[-1]) <= level < floor(way[0])
        }
        here = sorted(inside | {room for room in shown if floor(room) == level})

        def middle(place: str) -> float:
            above = [at[a][0] for way in ways for a, b in pairwise(way) if b == place]
            return sum(above) / len(above) if above else width / 2

        for n, place in enumerate(sorted(here, key=middle)):
            at[place] = (width * (n + 0.5) / len(here), height * (top - level + 0.5))
    drawn = []
    for way in ways:
        x, y = at[way[0]]
        line = f"M{x:.0f} {y + 14:.0f}"
        for place in way[1:]:
            half, before, (x, y) = y + height / 2, x, at[place]
            end = y - 14 * (place in shown)
            line += f"C{before:.0f} {half:.0f} {x:.0f} {half:.0f} {x:.0f} {end:.0f}"
        drawn.append(f'<path d="{line}" marker-end="url(#tip)"/>')
    for room in shown:
        x, y = at[room]
        drawn.append(f'<rect x="{x - 46:.0f}" y="{y - 14:.0f}" width="92" height="28" rx="4"/>')
        drawn.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" {WRITTEN}>{room}</text>')
    return f"""<svg viewBox="0 0 {width} {height * (top + 1)}" style="max-width: 40em" role="img"
 fill="none" stroke="currentColor"><title>Rooms, and which imports which</title><defs>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z" fill="currentColor" stroke="none"/></marker>
</defs>{"".join(drawn)}</svg>"""


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        print(picture())
        return
    text = PAGE.read_text(encoding="utf-8")
    drawn = f"```mermaid\n{picture()}\n```"
    PAGE.write_text(MERMAID.sub(lambda _: drawn, text), "utf-8")


if __name__ == "__main__":
    main()

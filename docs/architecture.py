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
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "fastinit"
PAGE = Path(__file__).with_name("architecture.md")

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


def picture() -> str:
    """The rooms and their arrows, as Mermaid text."""
    arrows: dict[str, set[str]] = {room: set() for room in FLOORS}
    for found in imports():
        here, there = room_of(found.module), room_of(found.imported)
        if here != there and not found.typing:
            arrows[here].add(there)

    def below(room: str) -> set[str]:
        return arrows[room].union(*map(below, arrows[room]))

    lines = ["flowchart TD"]
    for room in reversed(FLOORS):
        shown = arrows[room] - set().union(*map(below, arrows[room]))
        lines += [
            f"  {room} --> {other}" for other in sorted(shown, key=FLOORS.index, reverse=True)
        ]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        print(picture())
        return
    text = PAGE.read_text(encoding="utf-8")
    drawn = f"```mermaid\n{picture()}\n```"
    PAGE.write_text(re.sub(r"```mermaid\n.*?```", lambda _: drawn, text, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()

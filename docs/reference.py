"""``python docs/reference.py DIRECTORY``: the API reference, from docstrings, as HTML (``make docs``).

pdoc makes it. What docstrings here have beyond what it knows is turned into Markdown first: tables,
definitions and sections named Warns.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pdoc
from pdoc import docstrings

PAGES = {
    "fastinit": "models, plans, statistics, LSUV: what is used most",
    "fastinit.plan.plan": "plans, and what their methods give",
    "fastinit.variance.lsuv.lsuv": "LSUV",
    "fastinit.variance.lsuv.result": "what LSUV gives",
    "fastinit.variance.watch.watch": "watching a model",
    "fastinit.variance.watch.result": "what watching gives",
    "fastinit.variance.run.run": "a training that was watched, step by step",
    "fastinit.variance.coord.result": "what a coordinate check gives",
    "fastinit.statistics.tensor": "moments of tensors",
    "fastinit.statistics.fields": "what moments are: their fields, and how they merge",
    "fastinit.init": "the functions of torch.nn.init",
    "fastinit.recipes": "rules for whole models",
    "fastinit.variance.lsuv.schedules": "factors of the variance by layer",
    "fastinit.checkpoint": "models straight to disk",
    "fastinit.checkpoint.dcp": "a plan as a checkpoint of torch.distributed.checkpoint",
    "fastinit.checkpoint.dcp_writing": "checkpoints of torch.distributed.checkpoint",
    "fastinit.command.models": "models by configuration or name",
    "fastinit.variance.plots": "pictures by layer",
    "fastinit.variance.run.plots": "pictures by step",
    "fastinit.frameworks.lightning": "a callback for Lightning that watches",
    "fastinit.frameworks.transformers": "a callback for transformers' Trainer that watches",
    "fastinit.frameworks.accelerate": "watching what Accelerate prepared",
    "fastinit.fills.fans": "fans, gains and standard deviations from shapes",
    "fastinit.stream.laws": "the distributions",
    "fastinit.base.number": "what is taken for a number, and the errors of what is none",
    "fastinit.fills.operator": "fills by address: windows and streams",
    "fastinit.backends": "what writes and measures where",
    "fastinit.stream.reference": "the specification, in plain torch",
}
"""Module to what it is for; the others are the inside."""

NEEDS = {
    "fastinit.frameworks.lightning": ("lightning", "pytorch_lightning"),
    "fastinit.frameworks.transformers": ("accelerate",),
    "fastinit.frameworks.accelerate": ("accelerate",),
}
"""Modules that are left out where none of these is installed."""

_RULE = re.compile(r"=+(?: =+)+")
_DEFINITION = re.compile(r"^(``\w+``)((?:\n    \S.*)+)", re.MULTILINE)


def table(lines: list[str]) -> list[str]:
    """A simple reStructuredText table, with its three rules, as Markdown.

    >>> table(["=== ===", "a   b", "=== ===", "one 1", "    2", "=== ==="])
    ['| a | b |', '|---|---|', '| one | 1 2 |']
    """
    starts = [match.start() for match in re.finditer(r"=+", lines[0])]
    rows: list[list[str]] = []
    for line in lines:
        if _RULE.fullmatch(line):
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
        if cells[0]:
            rows.append(cells)
        else:  # the row above goes on
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells)]
    said = [f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in row)} |" for row in rows]
    return [said[0], "|" + "---|" * len(starts), *said[1:]]


def markdown(text: str) -> str:
    """A docstring with its tables and definitions as Markdown; nothing of what Python made up."""
    if re.match(r"Alias for field number \d+$|Create new instance of ", text):
        return ""
    before: list[str] = []
    lines = text.splitlines()
    while len(rules := [i for i, line in enumerate(lines) if _RULE.fullmatch(line)]) >= 3:
        before += [*lines[: rules[0]], *table(lines[rules[0] : rules[2] + 1])]
        lines = lines[rules[2] + 1 :]
    return _DEFINITION.sub(_item, "\n".join([*before, *lines]))


def _item(definition: re.Match[str]) -> str:
    """A word above its indented explanation, as an item of a list."""
    return f"\n- {definition[1]}: {' '.join(definition[2].split())}"


def build(directory: Path) -> None:
    """Writes the reference to a directory, and raises on what pdoc would only warn of."""
    import fastinit

    known = docstrings.convert

    def convert(docstring: str, docformat: str, source_file: Path | None) -> str:
        return known(markdown(docstring), docformat, source_file)

    docstrings.convert = convert
    docstrings.GOOGLE_LIST_SECTIONS.append("Warns")
    pages = {
        name: said
        for name, said in PAGES.items()
        if any(map(importlib.util.find_spec, NEEDS.get(name, ("torch",))))
    }
    listed = [f"- `{name}`: {said}." for name, said in pages.items() if name != "fastinit"]
    fastinit.__doc__ = "\n".join([fastinit.__doc__ or "", "", *listed, ""])
    inside = "|".join(re.escape(name) for name in pages)
    pdoc.render.configure(
        docformat="google", include_undocumented=False, show_source=False, footer_text="fastinit"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Functions of the package, such as watch, are named as their modules, which pdoc finds twice.
        warnings.filterwarnings("ignore", "The module specification .* adds a module named")
        # A NamedTuple's constructor has no module to look its types up in.
        warnings.filterwarnings("ignore", "Error parsing type annotation .*__init__")
        pdoc.pdoc(*pages, f"!(?!(?:{inside})$)", output_directory=directory)


if __name__ == "__main__":
    build(Path(sys.argv[1]))

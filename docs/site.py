"""``python docs/site.py DIRECTORY``: the pages of docs/ and the API reference as one site (make site).

Sphinx makes it, in furo's dress: of the generators that are kept up it reads our docstrings as they are
(tables, definitions, roles, Google's sections), and with MyST our Markdown pages. Nothing is fetched
when a page is read. A warning of Sphinx is an error.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.architecture import MERMAID, drawing  # noqa: E402

STYLE = "table.docutils .prose { min-width: 12em }"

GUIDES = {
    "Using it": [
        "drop-in",
        "whole-model",
        "low-precision",
        "missing-weights",
        "large-models",
        "frameworks",
    ],
    "Variance": ["lsuv", "seeing-variance", "leaving-it-on", "coord-check"],
    "Running it": ["installing", "command-line", "benchmarks"],
    "Reference": ["reference"],
    "Changing it": ["architecture", "backends", "CONTRIBUTING", "CHANGELOG"],
}
"""Every page, under its heading in the navigation."""

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

CONFIGURATION = {
    "project": "fastinit",
    "html_title": "fastinit",
    "html_theme": "furo",
    "html_show_copyright": False,
    "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "myst_heading_anchors": 4,
    "myst_number_code_blocks": [],
    "autodoc_member_order": "bysource",
    "autodoc_typehints_format": "short",
    "python_maximum_signature_line_length": 88,
    "napoleon_use_ivar": True,
    "add_module_names": False,
    "nitpicky": False,
    "html_static_path": ["static"],
    "html_css_files": ["tables.css"],
    "suppress_warnings": ["ref.python"],  # a name that fastinit has too is the same thing
}


def sources(folder: Path) -> None:
    """What Sphinx reads: the Markdown pages side by side, and a page for each module."""
    (folder / "static").mkdir()
    (folder / "static" / "tables.css").write_text(STYLE)
    pages = [name for names in GUIDES.values() for name in names if name != "reference"]
    for path in (ROOT / "docs").iterdir():
        if path.suffix == ".png":
            shutil.copy(path, folder)
    (folder / "README.md").write_text(_beside((ROOT / "README.md").read_text()))
    for name in pages:
        path = ROOT / f"{name}.md" if name.isupper() else ROOT / "docs" / f"{name}.md"
        drawn = MERMAID.sub(lambda _: f"```{{raw}} html\n{drawing()}\n```", path.read_text())
        (folder / f"{name}.md").write_text(_beside(drawn))
    trees = [_tree(heading, names) for heading, names in GUIDES.items()]
    (folder / "index.md").write_text("\n".join([_beside((ROOT / "README.md").read_text()), *trees]))
    (folder / "README.md").unlink()
    modules = [
        name for name in PAGES if any(map(importlib.util.find_spec, NEEDS.get(name, ("torch",))))
    ]
    listed = [f"- [`{name}`]({name}.md): {PAGES[name]}." for name in modules]
    tree = _tree("", modules)
    (folder / "reference.md").write_text("\n".join(["# Reference", "", *listed, "", tree]))
    for name in modules:
        said = [
            f"# {name}",
            "",
            "```{eval-rst}",
            f".. automodule:: {name}",
            "   :members:",
            "```",
            "",
        ]
        (folder / f"{name}.md").write_text("\n".join(said))


def _tree(caption: str, names: list[str]) -> str:
    """A part of the navigation."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:", ":maxdepth: 1"]
    return "\n".join(["", "```{toctree}", *options, "", *names, "```", ""])


def _beside(text: str) -> str:
    """A page whose links go to pages beside it, wherever those lie in the repository."""
    text = re.sub(r"\]\((?:\.\./)?(?:docs/)?README\.md", "](index.md", text)
    return re.sub(r"\]\((?:\.\./|docs/)([\w.-]+)", r"](\1", text)


_NAME = re.compile(r"(`+[^`]*`+)|(\w)_(?!\w)( (?= ))?")


def prepared(_: object, what: str, *rest: Any) -> None:
    """Changes a docstring's lines before napoleon reads them.

    ``normal_`` may stand in prose and tables, where it would be a link. Before a colon, an attribute's
    first line would be its type.
    """
    lines: list[str] = rest[-1]
    example = False
    for n, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[n] = _NAME.sub(lambda m: m[1] or f"{m[2]}\\_", line)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: it takes what stands on the first line


_REFERS = re.compile(r":raises ((?:and )?(?:as|what) .*?):( .*)?", re.IGNORECASE)


def referred(_: object, __: str, *rest: Any) -> None:
    """Changes what napoleon made of "Raises: As :func:`another`.", which names no exception."""
    lines: list[str] = rest[-1]
    for n, line in enumerate(lines):
        if found := _REFERS.fullmatch(line):
            lines[n] = f":raises: {found[1]}" + (f":{found[2]}" if found[2] else "")


def readable(_: object, tree: Any) -> None:
    """Marks the columns of a table that have sentences: squeezed, they have a word in each line."""
    from docutils import nodes

    for table in tree.findall(nodes.tgroup):
        for column in zip(*(row.children for row in table.findall(nodes.row))):
            if max(len(entry.astext()) for entry in column) > 40:
                for entry in column:
                    entry["classes"].append("prose")


def build(directory: Path) -> None:
    """Writes the site to a directory; raises on the first of Sphinx's warnings."""
    from sphinx.application import Sphinx

    with tempfile.TemporaryDirectory() as folder:
        sources(Path(folder))
        trees = Path(folder, ".trees")
        made = Sphinx(
            folder, None, directory, trees, "html", CONFIGURATION, warningiserror=True, status=None
        )
        made.connect("autodoc-process-docstring", prepared, priority=400)
        made.connect("autodoc-process-docstring", referred, priority=600)  # napoleon's is 500
        made.connect("doctree-read", readable)
        made.build()
        if made.statuscode:
            sys.exit("the site has warnings, see above")


if __name__ == "__main__":
    build(Path(sys.argv[1]))

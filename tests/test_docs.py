"""The README and the pages of docs/: what they say to run runs, their figures are the saved ones.

Of a page the blocks run in their order, the Python in one namespace, in a directory of the page's own:

========================== ======================================================================
block                      what is done with it
========================== ======================================================================
python                     run; a comment behind a ``print`` is what it prints
python, needs=PACKAGE      run, where the package is installed
any, title="FILE"          written to the file
sh                         ``python -m fastinit`` is run, and torchrun's program in as many processes;
                           ``make`` and ``pip install`` are all else that may be there
text                       what the block before it printed last, to the letter
console, others            not run: what a large machine showed
========================== ======================================================================
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import warm

from fastinit import __main__ as command
from fastinit.backends import choose as backends

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Block(NamedTuple):
    language: str
    options: dict[str, str]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        options = dict(word.split("=", 1) for word in shlex.split(match[2]))
        found.append(Block(match[1], options, match[3], text.count("\n", 0, match.start(3)) + 1))
    return found


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a page may change: backends, the generator, the directory, modules that it brings, ..."""
    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    state, modules, threads = torch.get_rng_state(), set(sys.modules), torch.get_num_threads()
    environment = dict(os.environ)  # to which some packages add, as they are imported
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("restored")
def test_page_runs(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "example"}
    printed = ""
    for block in blocks(page):
        if not _is_there(block.options.get("needs", "torch")):
            continue
        if "title" in block.options:
            Path(block.options["title"]).write_text(block.text)
        elif block.language == "python":
            printed = run_python(block, page.name, namespace)
        elif block.language == "text":
            assert printed.endswith(block.text), f"{page.name}:{block.line}\n{printed}"
        elif block.language == "sh":
            for line in block.text.splitlines():
                run_command(shlex.split(line, comments=True))


def run_python(block: Block, page: str, namespace: dict[str, Any]) -> str:
    """What it prints."""
    everything = ""
    tree = ast.increment_lineno(ast.parse(block.text), block.line - 1)
    lines = block.text.splitlines()
    for statement in tree.body:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([statement], []), page, "exec"), namespace)
        everything += printed.getvalue()
        said = lines[statement.end_lineno - block.line].partition("  # ")[2]
        if said and _last(statement).startswith("print("):
            assert shows(printed.getvalue().strip(), said), f"{page}:{statement.end_lineno}"
    return everything


def _last(statement: ast.stmt) -> str:
    """The source of a statement, or of the last one in a loop's or a block's body."""
    while isinstance(statement, (ast.For, ast.With, ast.Try)):
        handlers = statement.handlers if isinstance(statement, ast.Try) else []
        statement = (handlers[-1] if handlers else statement).body[-1]
    return ast.unparse(statement)


def shows(printed: str, said: str) -> bool:
    """Whether what was printed is what a comment says.

    Of numbers the comment may have fewer digits; it may go on after a colon, or end in "...".
    """
    if said.endswith("..."):
        return printed.startswith(said.removesuffix("..."))
    return any(_alike(printed, wanted) for wanted in (said, said.partition(": ")[0]))


def _alike(printed: str, wanted: str) -> bool:
    got, numbers = NUMBER.findall(printed), NUMBER.findall(wanted)
    return NUMBER.split(printed) == NUMBER.split(wanted) and all(map(_rounds_to, got, numbers))


def _rounds_to(number: str, wanted: str) -> bool:
    digits = len(re.sub(r"e.*|\D", "", wanted).lstrip("0")) or 1
    return float(f"{float(number):.{digits - 1}e}") == float(wanted)


@pytest.mark.parametrize(
    ("printed", "said", "right"),
    [
        ("5.96e-07", "6e-07: little is left", True),
        ("5.4e-07", "6e-07", False),
        ("True", "True: as before", True),
        ("False", "True", False),
        ("a: normal, std 0.036084", "a: normal, std 0.03608", True),
        ("dead: Moments(count=32)", "dead: Moments(...", True),
        ("", "1", False),
    ],
)
def test_comments_are_compared(printed: str, said: str, right: bool) -> None:
    assert shows(printed, said) is right


# As torchrun does, but what is imported is imported once, and the ranks fork.
RANKS = """
import os, runpy, socket, sys
import torch._dynamo, torch.distributed.fsdp

with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
world, script = sys.argv[1:]
os.environ.update(MASTER_PORT=str(port), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
ranks = []
for rank in range(int(world)):
    ranks.append(os.fork())
    if not ranks[-1]:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        runpy.run_path(script, run_name="__main__")
        sys.exit()
sys.exit(any([os.waitpid(rank, 0)[1] for rank in ranks]))
"""


def run_command(words: list[str]) -> None:
    """One line of a shell block."""
    if words[:3] == ["python", "-m", "fastinit"]:
        if words[3:] != ["info"] and not _is_there("typer"):
            return
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            status = command.main(words[3:])
        assert status == 0, (words, err.getvalue())
    elif words[:1] == ["torchrun"]:
        if not torch.distributed.is_available():
            return
        option, processes, script = words[1:]
        assert option == "--nproc-per-node"
        done = warm.run(RANKS, processes, script, env=_environment())
        assert done.returncode == 0, done.stderr
    else:
        assert words[0] == "make" or words[:2] == ["pip", "install"], words


def _environment() -> dict[str, str]:
    """That of a program which imports this fastinit, on this machine's own network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost"}


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize(
    "name",
    "headline materialize large scale results lsuv watch digits peers versions".split(),  # noqa: SIM905
)
def test_results_are_the_saved_ones(name: str) -> None:
    readme = pytest.importorskip("benchmarks.readme", reason="not run from the checkout")
    assert readme.rendered(name) in readme.BLOCKS[name][0].read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text()
    code = re.findall(r"`make [^`]+", BLOCK.sub("", text)) + [
        block[2] for block in BLOCK.findall(text)
    ]
    named = re.findall(r"^`?make ([a-z]+)", "\n".join(code), re.MULTILINE)
    assert set(named) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        if anchor:
            assert anchor in _anchors(file.read_text()), target


def _anchors(text: str) -> set[str]:
    """The headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_each_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []


def test_what_is_raised_begins_with_the_exceptions() -> None:
    """Else napoleon takes a line that goes on for another exception's name."""
    names = re.compile(r"(?:and )?as |and what |[\w., ]+:( |$)", re.IGNORECASE)
    wrong = []
    for path in sorted((ROOT / "fastinit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            _, _, raised = (ast.get_docstring(node) or "").partition("Raises:\n")
            lines = raised.partition("\n\n")[0].splitlines()
            entries = [line.strip() for line in lines if re.match(r" {4}\S", line)]
            wrong += [f"{path.name} {node.name}: {e}" for e in entries if not names.match(e)]
    assert wrong == []


@pytest.mark.slow
def test_the_site_has_pages_and_reference_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    done = warm.run("import runpy, sys; sys.argv[:] = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')", ROOT / "docs" / "site.py", tmp_path,
        env=_environment())  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'id="fastinit.lsuv_"' in (tmp_path / "fastinit.html").read_text()
    for page in tmp_path.glob("*.html"):
        shown = re.sub(r"<[^>]*>", "", page.read_text().partition("<article")[2])
        marks = ":func:", ":raises", "\\_", "=====", "flowchart TD"  # of a table; Mermaid's
        for left in marks:
            assert left not in shown, page.name
    for page in PAGES[1:]:
        assert f'href="{page.stem}.html' in (tmp_path / "index.html").read_text()

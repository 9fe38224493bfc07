"""The house keeps its order: which module may import which (docs/architecture.md shows the rooms)."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import fastinit
from docs.architecture import FLOORS, PACKAGE, Import, imports, modules, picture, room_of


@cache
def arrows() -> list[Import]:
    """All imports of modules by modules."""
    return list(imports())


EXCEPTIONS: dict[str, str] = {}
"""Arrows ("module -> module") that break a rule, each with a reason; to be emptied."""

FOUR_BOTTOM = ("base", "elements", "stream", "backends")


def broken(rule: str, arrows: list[Import]) -> None:
    """Fails on arrows that are no exceptions."""
    found = [f"{arrow} (line {arrow.line})" for arrow in arrows if str(arrow) not in EXCEPTIONS]
    assert not found, f"{rule}: {', '.join(found)}"


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def test_every_module_is_in_a_room() -> None:
    assert {room_of(name) for name in modules()} == set(FLOORS)


def test_a_room_imports_no_room_above_it() -> None:
    """Late and typing imports too: what a function imports when it is called is used all the same."""
    floors = {room: floor for floor, room in enumerate(FLOORS)}
    up = [a for a in arrows() if floors[room_of(a.imported)] > floors[room_of(a.module)]]
    broken("imports a room above its own", up)


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for arrow in arrows():
        if not arrow.late and str(arrow) not in EXCEPTIONS:
            graph.setdefault(arrow.module, set()).add(arrow.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("here", "never"),
    [
        ("backends.triton", "backends.choose"),
        ("backends.contract", "backends.choose"),
        ("fills", "plan"),
        ("plan", "record"),
        ("statistics", "variance"),
        ("variance.plots", "variance.watch.result"),  # it takes names and numbers
        ("variance.plots", "variance.lsuv.result"),
        ("variance.run.plots", "variance.run.run"),
    ],
)
def test_what_a_folder_never_imports(here: str, never: str) -> None:
    assert any(inside(name, here) for name in modules())
    assert any(inside(name, never) for name in modules())
    broken(
        f"{here} imports {never}",
        [a for a in arrows() if inside(a.module, here) and inside(a.imported, never)],
    )


def test_nobody_imports_the_command_line() -> None:
    found = [a for a in arrows() if room_of(a.imported) == "command" != room_of(a.module)]
    broken("imports command/", found)


def test_the_package_is_imported_by_nobody_inside() -> None:
    """Its names are for users; inside, what is meant is imported from where it is."""
    broken("imports from fastinit itself", [a for a in arrows() if a.imported == "" and a.module])


def _named(tree: ast.AST, name: str) -> Iterator[int]:
    """Lines that import a package, or look for it, or one of its modules, among what is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        else:
            continue
        if any(inside(one, name) and one.replace(".", "").isidentifier() for one in names):
            yield node.lineno


@pytest.mark.parametrize("room", FOUR_BOTTOM)
def test_the_bottom_knows_no_modules(room: str) -> None:
    """torch.nn is for those who have a model: below, there are tensors."""
    for name, path in modules().items():
        if inside(name, room):
            lines = list(_named(ast.parse(path.read_text("utf-8")), "torch.nn"))
            assert not lines, f"{path} imports torch.nn in line {lines}"


def _private_names_of_torch(tree: ast.AST) -> Iterator[str]:
    """torch's modules and attributes with an underscore that a module names, with the line."""
    roots = {"torch", "nn"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            path = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path, inner = [inner.attr, *path], inner.value
            of_torch = isinstance(inner, ast.Name) and inner.id in roots
            if not of_torch and node.attr not in ("_base", "_version", "_cdata", "_schema"):
                continue
        else:
            continue
        if any(name.startswith("_") and not name.startswith("__") for name in path):
            yield f"{'.'.join(path)} in line {node.lineno}"


def test_torchs_private_names_are_in_two_files() -> None:
    assert list(_private_names_of_torch(ast.parse("torch._C.x\ny._cdata\nfrom torch._d import e")))
    for name, path in modules().items():
        if name not in ("base.torch_internals", "base.distributed_internals"):
            found = list(_private_names_of_torch(ast.parse(path.read_text("utf-8"))))
            assert not found, f"{path}: {found}"


TRANSFORMERS = (
    "fills.layer_kinds",
    "recipes",
    "checkpoint.entries",
    "command.models",
    "frameworks.transformers",
    "patching",
)
"""Who may name it; layer_kinds asks for its Conv1D;
patching swaps the functions of tables that transformers keeps of torch's."""


def test_transformers_is_named_in_few_places() -> None:
    for name, path in modules().items():
        if not any(inside(name, where) for where in TRANSFORMERS):
            lines = list(_named(ast.parse(path.read_text("utf-8")), "transformers"))
            assert not lines, f"{path} names transformers in line {lines}"


def _packages() -> Iterator[ModuleType]:
    yield fastinit
    for found in pkgutil.walk_packages([str(PACKAGE)], "fastinit."):
        if found.ispkg:
            yield importlib.import_module(found.name)


def test_no_function_hides_a_module_of_its_name() -> None:
    for package in _packages():
        for module in pkgutil.iter_modules(package.__path__):
            seen = getattr(package, module.name, None)
            if seen is not None:
                assert isinstance(seen, ModuleType), f"{package.__name__}.{module.name} is {seen!r}"


def test_each_room_says_what_it_is_for() -> None:
    for package in _packages():
        text = package.__doc__ or ""
        assert text.strip(), package.__name__
        assert package is fastinit or ("In: " in text and "Out: " in text), package.__name__


def test_each_room_says_which_rooms_it_may_import() -> None:
    """And imports no other: a room's docstring is the rule for what is in it."""
    for package in _packages():
        room = package.__name__.removeprefix("fastinit.")
        text = package.__doc__ or ""
        if package is fastinit or "." in room:
            continue
        sentence = text.partition("It may import ")[2].partition(".")[0]
        may = set(sentence.replace("\n", " ").replace(" and ", ", ").split(", "))
        used = {room_of(a.imported) for a in arrows() if room_of(a.module) == room} - {room}
        assert used <= may, f"{room} imports {used - may}, which its docstring does not say"


def test_the_picture_is_that_of_the_imports() -> None:
    page = Path(PACKAGE.parent, "docs", "architecture.md").read_text("utf-8")
    assert f"```mermaid\n{picture()}\n```" in page, "python docs/architecture.py --write draws it"


def test_what_the_packages_list_names_is_there() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))
    folders = {
        ".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in PACKAGE.rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == folders


LONGER = {
    *("tests/as_eager.py", "tests/numbers_asked.py", "tests/test_gpu.py"),
    *("tests/backends/test_cuda_text.py", "tests/command/test_cli_faults.py"),
}
"""Files of 400 lines or more, of Python and of C++; to be emptied."""


def test_files_have_fewer_than_400_lines() -> None:
    """And one subject, which no test can see."""
    root = PACKAGE.parent
    files = [*(p for d in ("fastinit", "tests", "benchmarks") for p in (root / d).rglob("*.py"))]
    files += [p for p in (root / "csrc").rglob("*") if p.is_file()]
    longer = {
        p.relative_to(root).as_posix() for p in files if p.read_text("utf-8").count("\n") > 399
    }
    assert longer == LONGER


def test_the_exceptions_are_needed() -> None:
    assert set(EXCEPTIONS) <= {str(arrow) for arrow in arrows()}


def test_modules_that_users_are_told_of_are_imported_by_their_names() -> None:
    for name in ("agreement", "backends", "checkpoint", "init", "ops", "recipes", "schedules"):
        assert importlib.import_module(f"fastinit.{name}") is getattr(fastinit, name)
    from fastinit.ops import Window
    from fastinit.schedules import alternating

    assert Window is fastinit.ops.Window
    assert alternating is fastinit.schedules.alternating

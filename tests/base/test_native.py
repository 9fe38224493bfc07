"""The native module's interface: what its stub says is what it has, and no other build is taken."""

from __future__ import annotations

import ast
import hashlib
import types
from pathlib import Path

import pytest

import fastinit
from fastinit.base import native

STUB = Path(fastinit.__file__).with_name("_native.pyi")
MODULE = native.module
needs_native = pytest.mark.skipif(MODULE is None, reason="without the native module")


def module(**attributes: str) -> types.ModuleType:
    made = types.ModuleType("_native")
    vars(made).update(attributes)
    return made


def test_a_module_is_of_the_text_that_it_was_built_with(tmp_path: Path) -> None:
    stub = tmp_path / "_native.pyi"
    of_it = hashlib.sha256(b"def fill() -> None: ...\n").hexdigest()
    assert native.is_of(module(), stub)  # in a bundle
    stub.write_bytes(b"def fill() -> None: ...\n")
    assert native.is_of(module(interface=of_it), stub)
    assert not native.is_of(module(), stub)  # of before there were digests
    stub.write_bytes(b"def fill(threads: int) -> None: ...\n")
    assert not native.is_of(module(interface=of_it), stub)


# --- the stub, which has to change where the interface does --------------------------------------

TEXT = ast.parse(STUB.read_text())
ALIASES = {
    node.targets[0].id: node.value
    for node in TEXT.body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
}
WITH_CUDA = {"nvcc", "cuda_driver", "cuda_missing_on", "staged_bytes", "scratch_bytes"}
WITH_CUDA |= {"Pieces.fill", "measure_on", "count_on"}


def build(annotation: ast.expr | None) -> object:
    """What a type is made of: a tuple of each item's, a list of the items', else None."""
    if isinstance(annotation, ast.Name) and annotation.id in ALIASES:
        return build(ALIASES[annotation.id])
    if not isinstance(annotation, ast.Subscript):
        return None
    kind = ast.unparse(annotation.value).rpartition(".")[2].lower()
    inner = annotation.slice
    items = [build(item) for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
    if kind == "annotated":
        return items[0]
    return tuple(items) if kind in ("tuple", "dict") else items


def taken(function: ast.FunctionDef) -> list[object]:
    given = [*function.args.posonlyargs, *function.args.args]
    return [build(argument.annotation) for argument in given]


def said(body: list[ast.stmt], within: str = "") -> dict[str, object]:
    """All that a stub names, and what each function takes."""
    found: dict[str, object] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = None
            found.update(said(node.body, f"{node.name}."))
        elif isinstance(node, ast.FunctionDef):
            found[within + node.name] = None if node.decorator_list else taken(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def there(holder: object, within: str = "") -> dict[str, object]:
    """The same of the module, as pybind11 says it; of what is not its, that it is there."""
    found: dict[str, object] = {}
    for name, value in vars(holder).items():
        if name.startswith("_") and name not in ("__init__", "__len__", "__bytes__", "__version__"):
            continue
        line = (value.__doc__ or "").partition("\n")[0] if callable(value) else ""
        if isinstance(value, type):
            found[name] = None
            found.update(there(value, f"{name}."))
        elif line.startswith(f"{name}("):
            [function] = ast.parse(f"def {line}: ...").body
            assert isinstance(function, ast.FunctionDef)
            found[within + name] = taken(function)
        else:
            found[within + name] = ...
    return found


@needs_native
def test_the_stub_says_what_the_module_has() -> None:
    assert MODULE is not None
    stub, has = said(TEXT.body), there(MODULE)
    if not MODULE.cuda_archs:
        stub = {
            name: takes
            for name, takes in stub.items()
            if not {name, name.rpartition(".")[2]} & WITH_CUDA
        }
    assert stub.keys() == has.keys()
    assert {
        name: (stub[name], takes)
        for name, takes in has.items()
        if takes is not ... and stub[name] != takes
    } == {}


@needs_native
@pytest.mark.parametrize(
    ("name", "takes"),
    [
        (name, len(takes))
        for name, takes in said(TEXT.body).items()
        if isinstance(takes, list) and there(MODULE or module()).get(name) is ...
    ],
)
def test_what_python_calls_directly_takes_so_many_arguments(name: str, takes: int) -> None:
    for count in (takes - 1, takes + 1):
        with pytest.raises(TypeError, match="argument"):
            getattr(MODULE, name)(*[0] * count)

"""fastinit.patching: torch.nn.init swapped and exactly restored."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.modules.activation

from fastinit import init, patching

TORCH = dict(vars(torch.nn.init))


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert {n: vars(torch.nn.init)[n] for n in TORCH if n != "__builtins__"} == {
        n: v for n, v in TORCH.items() if n != "__builtins__"
    }


def transformers(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A module as transformers' own is when it is imported: the table holds what torch.nn.init has."""
    module = ModuleType("transformers.initialization")
    table = {n: getattr(torch.nn.init, n) for n in ("normal_", "zeros_", "orthogonal_")}
    module.TORCH_INIT_FUNCTIONS = table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers.initialization", module)
    return table


@pytest.mark.parametrize("name", torch.nn.init.__all__)
def test_every_function_is_swapped(name: str) -> None:
    with patching.patched():
        assert getattr(torch.nn.init, name) is getattr(init, name)
    assert getattr(torch.nn.init, name) is TORCH[name]


def test_modules_are_initialised_by_us() -> None:
    with patching.patched():
        torch.manual_seed(3)
        layer = torch.nn.Linear(7, 5)
        attention = torch.nn.MultiheadAttention(
            8, 2
        )  # bound xavier_uniform_ when torch was imported
    torch.manual_seed(3)
    expected = init.kaiming_uniform_(torch.empty(5, 7), a=5**0.5)
    init.uniform_(torch.empty(5), -(7**-0.5), 7**-0.5)
    assert layer.weight.equal(expected)
    init.kaiming_uniform_(torch.empty(8, 8), a=5**0.5)  # out_proj's own reset
    init.uniform_(torch.empty(8), -(8**-0.5), 8**-0.5)
    assert attention.in_proj_weight.equal(init.xavier_uniform_(torch.empty(24, 8)))
    activation = torch.nn.modules.activation
    assert activation.xavier_uniform_ is TORCH["xavier_uniform_"]


def test_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), patching.patched():
        raise KeyError
    assert torch.nn.init.normal_ is TORCH["normal_"]


def test_nested() -> None:
    with patching.patched():
        with patching.patched():
            assert torch.nn.init.normal_ is init.normal_
        assert torch.nn.init.normal_ is init.normal_
    assert torch.nn.init.normal_ is TORCH["normal_"]
    patching.patch()
    patching.patch()
    patching.unpatch()
    assert torch.nn.init.normal_ is init.normal_
    patching.unpatch()


def test_unpatch_needs_a_patch() -> None:
    with pytest.raises(RuntimeError, match="without a patch"):
        patching.unpatch()


def test_what_another_patched_before_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    with monkeypatch.context() as m:
        m.setattr(torch.nn.init, "zeros_", theirs)
        with patching.patched():
            assert torch.nn.init.zeros_ is init.zeros_
        assert torch.nn.init.zeros_ is theirs


def test_transformers_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    table = transformers(monkeypatch)
    before = dict(table)
    with patching.patched():
        assert table == {n: getattr(init, n) for n in before}
    assert table == before


def test_transformers_imported_while_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    with patching.patched():
        table = transformers(monkeypatch)
        assert table["normal_"] is init.normal_
    assert table == {n: TORCH[n] for n in table}


def test_transformers_is_not_imported_by_us() -> None:
    loaded = "transformers" in sys.modules
    with patching.patched():
        assert ("transformers" in sys.modules) == loaded


@pytest.mark.parametrize("name", torch.nn.init.__all__)
def test_signatures_extend_torchs(name: str) -> None:
    ours = inspect.signature(getattr(init, name)).parameters
    theirs = inspect.signature(getattr(torch.nn.init, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter, other in zip(ours.values(), theirs.values(), strict=False):
        assert (parameter.kind, parameter.default) == (other.kind, other.default)
    more = list(ours.values())[len(theirs) :]
    assert all(p.kind is p.KEYWORD_ONLY for p in more)

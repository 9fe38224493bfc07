"""Hooks that copies and pickles of a module do not have."""

from __future__ import annotations

import ast
import copy
import copyreg
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import fastinit
from fastinit.base.hooks import Uncopied


def pickled_by(pickler: Any) -> Callable[[Any], Any]:
    def copied(value: Any) -> Any:
        file = io.BytesIO()
        pickler(file).dump(value)
        return pickle.loads(file.getvalue())

    return copied


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled_by(pickle.Pickler),
    "pickle in Python": pickled_by(pickle._Pickler),  # type: ignore[attr-defined]
    "torch.save": saved,
    "to another process": pickled_by(ForkingPickler),
}

HOOKS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "forward": lambda m, hook: m.register_forward_hook(hook),
    "with keywords": lambda m, hook: m.register_forward_hook(hook, with_kwargs=True),
    "first, always": lambda m, hook: m.register_forward_hook(hook, prepend=True, always_call=True),
    "before": lambda m, hook: m.register_forward_pre_hook(hook),
    "before, with keywords": lambda m, hook: m.register_forward_pre_hook(hook, with_kwargs=True),
    "backward": lambda m, hook: m.register_full_backward_hook(hook),
    "state": lambda m, hook: m.register_state_dict_post_hook(hook),
}


def shout(*args: Any) -> None:
    """A user's own hook, which can be pickled."""


def entries(model: nn.Module) -> list[int]:
    """How many entries each dict of hooks has."""
    return [
        len(value)
        for module in model.modules()
        for name, value in sorted(vars(module).items())
        if "hooks" in name
    ]


def nets() -> dict[str, nn.Module]:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LSTM(4, 4))
    return {"plain": plain, "traced by fx": fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("net", nets())
def test_copies_have_the_users_hooks_alone(net: str, kind: str, how: str) -> None:
    model = nets()[net]
    inside = model.get_submodule("0")
    users = HOOKS[kind](inside, shout)
    before = entries(model)
    own = [Uncopied(HOOKS[kind](m, lambda *args: None)) for m in (model, inside, inside)]
    assert entries(model) != before
    other = COPIES[how](model)
    assert entries(other) == before
    for hook in own:
        hook.remove()
    assert entries(model) == before
    assert OrderedDict not in copyreg.dispatch_table
    users.remove()
    assert sum(entries(model)) == 0


def test_other_dicts_are_copied_as_ever_also_as_somebody_else_has_them() -> None:
    model = nn.Linear(2, 2)
    value = OrderedDict([(1, [2]), ("a", "b")])
    value.extra = 3  # type: ignore[attr-defined]
    asked = []

    def reduced(value: Any) -> Any:
        asked.append(value)
        return value.__reduce__()

    for theirs in (None, reduced):
        if theirs is not None:
            copyreg.pickle(OrderedDict, theirs)
        try:
            hook = Uncopied(model.register_forward_hook(shout))
            for how, copied in COPIES.items():
                other = copied(value)
                assert other == value, how
                assert other.extra == 3
            hook.remove()
            hook.remove()
            assert copyreg.dispatch_table.get(OrderedDict) is theirs
        finally:
            copyreg.dispatch_table.pop(OrderedDict, None)
    assert len(asked) == len(COPIES)


def test_every_hook_on_a_module_is_one_of_these() -> None:
    """Each registration is what Uncopied is given, or has a name that it is given."""
    package = Path(fastinit.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        given: set[ast.AST | str] = set()
        named: dict[ast.AST, str] = {}
        registered = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named[node.value] = node.targets[0].id
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).split(".")[-1]
            if called == "Uncopied":
                given |= {a.id if isinstance(a, ast.Name) else a for a in node.args}
            # Not those of tensors, or of all modules, which none has.
            elif re.fullmatch("register_(?!module_|post_accumulate_)[a-z_]+_hook", called):
                registered.append(node)
        for call in registered:
            assert given & {call, named.get(call)}, f"{path}:{call.lineno}"

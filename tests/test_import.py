"""What ``import fastinit`` brings beyond ``import torch``."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import warm

import fastinit

CODE = """
import json, sys
import torch
before = set(sys.modules)
import fastinit
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def packages(modules: list[str]) -> set[str]:
    """Those that are not Python's own."""
    others = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return {name for name in others if not name.startswith("_sysconfigdata")}


def test_an_import_brings_nothing_that_is_not_used() -> None:
    """What it takes is measured in benchmarks/imported.py."""
    done = warm.run(CODE)
    assert done.returncode == 0, done.stderr
    brought = json.loads(done.stdout)
    assert packages(brought) == {"fastinit"}
    late = {"decimal", "fractions", "html", "fastinit.base.ranks", "fastinit.stream.exact"}
    assert late.isdisjoint(brought)
    rooms = {name.split(".")[1] for name in brought if name.count(".")}
    late = {"checkpoint", "command", "frameworks", "patching", "plan", "recipes", "record"}
    assert late.isdisjoint(rooms)
    assert {name for name in brought if name.startswith("fastinit.variance.")} <= {
        "fastinit.variance.lsuv",
        "fastinit.variance.lsuv.schedules",
    }


FIRST = {
    "recorded": "with fastinit.deferred(): model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))\n"
    "fastinit.materialize_(model)",
    "planned": "Plan.from_model(ON_META, recipes.torch_default, 0).apply_(ON_META, device='cpu')",
}


@pytest.mark.parametrize("way", FIRST)
def test_first_weights_bring_no_other_package(way: str) -> None:
    """Torch's own way to memory for a tensor on meta, for one, brings SymPy."""
    said = f"import fastinit\nfrom fastinit import Plan, recipes\n{FIRST[way]}\n"
    code = CODE.replace("import fastinit\n", said).replace("before =", f"{MADE}\nbefore =")
    done = warm.run(code)
    assert done.returncode == 0, done.stderr
    assert packages(json.loads(done.stdout)) <= {"fastinit", "torch"}


MADE = "from torch import nn; ON_META = nn.Linear(4, 4, device='meta')"
"""Before, as torch's constructors bring SymPy themselves."""


def test_what_comes_later_is_what_type_checkers_see() -> None:
    tree = ast.parse(Path(fastinit.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == fastinit._HOME


@pytest.mark.parametrize("name", fastinit.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(fastinit, name) is getattr(fastinit, name)
    assert name in dir(fastinit)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fastinit' has no attribute 'nothing'"):
        _ = fastinit.nothing


def test_names_are_found_late_in_any_mode(tmp_path: Path) -> None:
    """Modes that change what torch makes do not change what an import makes."""
    code = """
    import sys, torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    import fastinit
    fake = FakeTensorMode()
    with torch.device("meta"), fake, torch.inference_mode():
        for name in fastinit.__all__:
            getattr(fastinit, name)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    fastinit.lsuv_(net, torch.randn(64, 8))
    with fastinit.watch(net) as seen:
        net(torch.randn(64, 8))
    print(seen.table())
    """
    done = warm.run(code)
    assert done.returncode == 0, done.stderr

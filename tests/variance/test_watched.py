"""What was seen, as a table and as JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from fastinit.variance.watch.watch import watch


def test_json_is_strict_and_complete() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with watch(model, gradients=True) as w:
        model(torch.arange(9)).sum().backward()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(w.to_json(), parse_constant=refuse)
    embedding, linear = report["layers"]
    assert embedding["forward"]["nonfinite"] == embedding["nonfinite"] == 36
    assert embedding["forward"]["mean"] is None
    assert embedding["forward"]["min"] == "Infinity"
    assert embedding["factor"] is None
    assert linear["fan_in"] == 4
    assert linear["backward"]["mean"] == 1.0
    assert linear["weight"]["var"] == pytest.approx(model[1].weight.var().item())
    assert report["product"] == pytest.approx(linear["factor"])
    assert report["missing"] == {}


def test_a_name_takes_one_line_of_a_table() -> None:
    model, inner = nn.Module(), nn.Linear(4, 4)
    model.add_module("first\nsecond\x1b[2J", inner)
    with watch(model) as w:
        inner(torch.randn(2, 4))
    assert "first second [2J" in w.table().splitlines()[2]


def deep(name: str, levels: int) -> nn.Module:
    module: nn.Module = nn.Linear(300, 300)
    for _ in range(levels):
        module = nn.ModuleDict({name: module})
    return module


@pytest.mark.parametrize("gradients", [False, True])
def test_the_table_fits_a_terminal(gradients: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleList(
                nn.ModuleDict({"attention": nn.ModuleDict({"projection": nn.Linear(300, 300)})})
                for _ in range(12)
            )
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.transformer:
                x = block["attention"]["projection"](x) * 1e-5
            return x * math.inf

    model = Net()
    with watch(model, gradients=gradients) as w:
        model(torch.randn(8, 300)).sum().backward()
    table = w.table().splitlines()
    assert all(len(line) <= 80 for line in table)
    assert ("grad std" in table[0]) == gradients
    firsts = [line.split()[0] for line in table[2:14]]
    assert len(set(firsts)) == 12  # the block's number is not what is left out
    assert table[-1] == "not measured: did not run as a module, or was only traced: unused"

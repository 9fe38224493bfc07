"""audit: who wrote each tensor of a model, as a value and a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from half_loaded import FILE, Net, assigned, build, emptied, garbage_
from torch import nn

from fastinit import (
    Plan,
    audit,
    materialize_,
    recipes,
)

STATES: dict[str, Callable[[], tuple[nn.Module, dict[str, str]]]] = {
    "eager": lambda: (nn.Linear(2, 2), {"weight": "given", "bias": "given"}),
    "on meta": lambda: (
        nn.Linear(2, 2, device="meta"),
        dict.fromkeys(["weight", "bias"], "unwritten"),
    ),
    "lazy": lambda: (nn.LazyLinear(2), dict.fromkeys(["weight", "bias"], "lazy")),
}


def of_recorded(change: Callable[[Net], Any]) -> Callable[[], dict[str, str]]:
    def states() -> dict[str, str]:
        model = build()
        change(model)
        return {each.name: each.state for each in audit(model).tensors}

    return states


def loaded_in_place(model: Net) -> None:
    materialize_(model).load_state_dict(FILE, strict=False)


def of_other_rotary(model: Net) -> None:
    model.table = model.table + 1


RECORDED: list[tuple[Callable[[Net], Any], dict[str, str]]] = [
    (lambda m: None, {"embed.weight": "recorded", "noise": "recorded", "table": "made"}),
    (materialize_, {"embed.weight": "filled", "noise": "filled", "table": "made"}),
    (loaded_in_place, {"embed.weight": "written", "head.weight": "filled"}),
    (assigned, {"embed.weight": "given", "out.weight": "recorded", "norm.running_mean": "made"}),
    (emptied, {"embed.weight": "written", "head.weight": "given", "table": "changed"}),
    (of_other_rotary, {"table": "changed"}),
    (lambda m: m.table.add_(1), {"table": "written"}),
    (lambda m: materialize_(m).to(torch.float64), {"embed.weight": "given", "table": "made"}),
    (lambda m: garbage_(materialize_(m)), {"embed.weight": "given", "table": "changed"}),
]


@pytest.mark.parametrize(("change", "expected"), RECORDED)
def test_the_audit_says_who_wrote_what(
    change: Callable[[Net], Any], expected: dict[str, str]
) -> None:
    states = of_recorded(change)()
    assert {name: states[name] for name in expected} == expected


@pytest.mark.parametrize("name", STATES)
def test_the_audit_of_what_was_not_recorded(name: str) -> None:
    model, expected = STATES[name]()
    assert {each.name: each.state for each in audit(model).tensors} == expected
    if name == "on meta":
        plan = Plan.from_model(model, recipes.torch_default)
        assert audit(model, plan).names("recorded") == list(expected)


def test_an_audit_is_a_value_and_a_table() -> None:
    model = nn.ModuleDict({f"{'long_name_' * 6}{i}": nn.Linear(2, 2) for i in range(3)})
    model["again"] = nn.Linear(2, 2)
    model["again"].weight = model[f"{'long_name_' * 6}0"].weight
    said = audit(model)
    assert said == audit(model)
    assert all(len(line) <= 80 for line in str(said).splitlines())
    assert said.tied == {"again.weight": f"{'long_name_' * 6}0.weight"}
    assert said.left == [each.name for each in said.tensors]

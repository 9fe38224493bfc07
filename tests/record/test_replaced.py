"""Parameters that take the place of registered ones without being registered, within the block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fastinit
from fastinit import Fill, checkpoint, deferred, fill_missing_, init, materialize_, recorded_plan


def skipped() -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, 3, 4)


def emptied() -> nn.Linear:
    return nn.Linear(3, 4).to_empty(device="cpu")


def emptied_within() -> nn.Linear:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 4)).to_empty(device="cpu")[0]


def in_its_dict() -> nn.Linear:
    layer = nn.Linear(3, 4)
    for name, parameter in list(layer._parameters.items()):
        assert parameter is not None
        layer._parameters[name] = nn.Parameter(torch.empty(parameter.shape))
    return layer


WAYS: tuple[Callable[[], nn.Linear], ...] = (skipped, emptied, emptied_within, in_its_dict)


def drawn(make: Callable[[], nn.Linear]) -> nn.Linear:
    with deferred(seed=2):
        layer = make()
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize("make", WAYS)
def test_they_are_recorded_as_all_are(make: Callable[[], nn.Linear], tmp_path: Path) -> None:
    layer = drawn(make)
    assert all(parameter.is_meta for parameter in layer.parameters())
    plan = recorded_plan(layer)
    assert dict(plan) == {"weight": Fill.normal(), "bias": Fill.constant(0.0)}
    checkpoint.write(layer, tmp_path / "model")
    weight = init.normal_(torch.empty(4, 3), seed=2, name="weight")
    written = load_file(tmp_path / "model" / "model.safetensors")
    filled = drawn(make)
    fill_missing_(filled)
    for values in (written, *(m.state_dict() for m in (materialize_(layer), filled))):
        assert torch.equal(values["weight"], weight)
        assert torch.equal(values["bias"], torch.zeros(4))
    assert torch.equal(plan.apply_(nn.Linear(3, 4)).weight, weight)


@pytest.mark.parametrize("make", WAYS)
def test_what_nobody_wrote_of_them_is_refused(make: Callable[[], nn.Linear]) -> None:
    with deferred(seed=2):
        layer = make()
        nn.init.normal_(layer.weight)
    for function in (materialize_, recorded_plan):
        with pytest.raises(ValueError, match="left unwritten, at least in part: parameter bias"):
            function(layer)


def test_what_the_constructor_looked_at_stays_as_it_was() -> None:
    with deferred(seed=2):
        layer = skipped()
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        seen = layer.weight.tolist()
    assert materialize_(layer).weight.tolist() == seen


def test_modules_of_before_the_block_keep_their_parameters() -> None:
    layer = nn.Linear(3, 4)
    with deferred():
        layer.register_buffer("count", torch.zeros(2))
        layer.register_parameter("scale", nn.Parameter(torch.ones(2)))
    assert not layer.weight.is_meta
    assert not layer.bias.is_meta
    assert fastinit.recorded_plan(layer)["scale"] == Fill.constant(1.0)


def test_what_is_written_within_the_block_keeps_its_values() -> None:
    with deferred(seed=2):
        layer = materialize_(nn.Linear(3, 4))
        other = materialize_(nn.Linear(3, 4)).double()
    assert torch.equal(layer.weight.double(), other.weight)

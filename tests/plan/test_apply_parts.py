"""apply_ to a part of a model by itself: what it has in the whole, and what it lacks is said."""

import re
from typing import Any

import pytest
import torch
from planned import Block, Net, blank, plan, recorded, tensors, whole
from torch import nn

import fastinit
from fastinit import Fill, Part, Plan

__all__ = ["plan", "recorded", "whole"]  # fixtures


def test_a_part_by_itself_gets_what_it_has_in_the_whole(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    for name, module in blank().named_modules():
        prefix = f"{name}." if name else ""
        assert plan.apply_(module, prefix=prefix) is module
        for own, tensor in tensors(module).items():
            assert torch.equal(tensor, whole[prefix + own]), prefix + own


def test_a_part_alone_may_be_on_meta_and_of_another_dtype(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    stage = nn.ModuleDict({"up": nn.Linear(6, 12, device="meta"), "down": nn.Linear(12, 6)})
    plan.apply_(stage, prefix="h.10.", only="h.10.up.*", device="cpu", dtype=torch.float64)
    assert torch.equal(stage["up"].weight.float(), whole["h.10.up.weight"])
    assert stage["up"].weight.dtype == torch.float64
    assert stage["down"].weight.dtype == torch.float32
    assert not torch.equal(stage["down"].weight, whole["h.10.down.weight"])


def test_a_part_has_a_tied_parameter_by_the_name_that_it_has(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    """The first and the last stage of a pipeline each have it, under different names."""
    for prefix in ("head.", "embed."):
        last = nn.Module()
        last.register_parameter("weight", nn.Parameter(torch.zeros(10, 6)))
        plan.apply_(last, prefix=prefix)
        assert torch.equal(last.weight, whole["embed.weight"])
    stage = nn.ModuleDict({"head": nn.Linear(6, 10, bias=False)})  # its names are the whole model's
    assert torch.equal(plan.apply_(stage, only="head.*")["head"].weight, whole["embed.weight"])


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        ("h.1", ValueError, r"prefix must be all .* 'h\.1\.', but got 'h\.1'"),
        ("h.11.", ValueError, r"the plan has no parameters h\.11\.up\.weight, h\.11\.up\.bias"),
        (
            "h.",
            ValueError,
            r"the plan has no .*h\.up\.weight.*; the model has no .*h\.0\.up\.weight",
        ),
        ("", ValueError, r"the plan has no parameters up\.weight"),
        (None, TypeError, "prefix must be a str"),
        (("h.1.",), TypeError, "prefix must be a str"),
    ],
)
def test_a_prefix_is_all_that_is_before_the_names(
    prefix: Any, error: type[Exception], message: str, plan: Plan
) -> None:
    block = Block()
    before = {name: tensor.clone() for name, tensor in tensors(block).items()}
    with pytest.raises(error, match=message):
        plan.apply_(block, prefix=prefix)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(block).items())


def test_a_part_has_all_that_the_plan_has_of_it(plan: Plan) -> None:
    block = Block()
    block.gain = nn.Parameter(torch.ones(1))
    del block.up
    with pytest.raises(
        ValueError, match=r"no parameter h\.0\.gain; .* no parameters h\.0\.up\.weight"
    ):
        plan.apply_(block, prefix="h.0.")
    with pytest.raises(
        ValueError, match=r"no parameter under h\.0\. matches patterns h\.1\.\*, up\.\*"
    ):
        plan.apply_(block, prefix="h.0.", only=("h.1.*", "up.*", "*.bias"))


def test_a_plan_of_many_names_is_asked_for_many_of_them() -> None:
    """As many names as parameters: not each compared with each, which would take minutes."""
    names = [f"h.{i}.w" for i in range(20_000)]
    plan = Plan(dict.fromkeys(names, Fill.constant(1.0)))
    layer = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2))})
    plan.apply_(layer, prefix="h.7.", only=names[7:8])
    with pytest.raises(ValueError, match="the model has no parameters"):
        plan.apply_(nn.Module(), only=names)


@pytest.mark.parametrize("name", ["h.3.up.*", "head.*", "h.1.norm.*", "h.2.norm.running_mean"])
def test_what_a_part_lacks_is_said(name: str, recorded: tuple[Net, Plan]) -> None:
    """Of parts others may have it; who has no parts has all that is asked for, buffers too."""
    _, plan = recorded
    stage = nn.ModuleDict({"0": nn.Linear(6, 12), "1": nn.Identity(), "2": nn.BatchNorm1d(6)})
    del stage["2"].running_mean
    before = {own: tensor.clone() for own, tensor in tensors(stage).items()}
    with pytest.raises(ValueError, match=r"no parameter under h\.2|the model has nothing of"):
        plan.apply_(stage, prefix="h.2.", only=name)
    shapes = {own: tuple(tensor.shape) for own, tensor in before.items()}
    where = {own: Part(shape, name=own.replace("0.", "h.2.up.")) for own, shape in shapes.items()}
    with pytest.warns(UserWarning, match=rf"matches pattern {re.escape(name)};") as told:
        plan.apply_(stage, parts=where, only=name)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=rf"matches pattern {re.escape(name)};"):
        plan.apply_(stage, parts=where, only=(name, "h.2.up.bias"))
    for own, tensor in tensors(stage).items():
        assert torch.equal(tensor, before[own]) is (own != "0.bias"), own


@pytest.mark.parametrize("name", ["head.*", "embed.weight", "h.0.norm.*_mean", "scale", "*"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_nothing_is_said_of_what_is_there(
    name: str, is_cut: bool, plan: Plan, recwarn: pytest.WarningsRecorder
) -> None:
    """By any name of what is tied, as a buffer, and as a plain attribute that has its values."""
    with fastinit.deferred():
        model = Net()
        model.scale = model.head.weight.sum()
    plan = fastinit.recorded_plan(model)
    fastinit.materialize_(model)
    plan.apply_(model, only=name, parts={} if is_cut else None)
    assert not recwarn.list

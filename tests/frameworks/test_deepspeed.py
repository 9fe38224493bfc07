"""DeepSpeed's ZeRO stage 3 has, rank by rank, what the whole model has there."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Plan

pytestmark = pytest.mark.frameworks

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 4},
}


class Net(nn.Module):
    """Of sizes that the ranks do not divide, of fewer elements than ranks, and tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.body = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 7))
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.embed(x))) * self.gain
        return logits


def rule(name: str, *_: object) -> Fill:
    return Fill.orthogonal() if name == "body.0.weight" else Fill.normal(0.0, 0.5)


def started() -> Any:
    """deepspeed, over the ranks' group, without compiling its own collectives."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not deepspeed.comm.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    return deepspeed


def full(deepspeed: Any, model: nn.Module) -> dict[str, Tensor]:
    """What DeepSpeed gathers."""
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("built", ["within zero.Init", "given to it"])
@on_ranks(4)
def test_parts_have_the_values_of_the_whole(built: str) -> None:
    from fastinit.frameworks import deepspeed as ours

    deepspeed = started()
    plan = Plan.from_model(Net(), rule, seed=3)
    expected = dict(plan.apply_(Net()).named_parameters())
    if built == "within zero.Init":
        with deepspeed.zero.Init(config_dict_or_path=CONFIG):
            model = Net()
    else:
        model = Net()
        deepspeed.zero.Init(module=model, config_dict_or_path=CONFIG)
    parts = ours.parts(model)
    assert dict(Plan.from_model(model, rule, parts=parts)) == dict(plan)
    plan.apply_(model, parts=parts)
    for name, values in full(deepspeed, model).items():
        assert torch.equal(values, expected[name]), name


@on_ranks(4)
def test_what_was_recorded_is_what_the_engine_trains() -> None:
    from fastinit.frameworks import deepspeed as ours

    deepspeed = started()
    with fastinit.deferred(seed=5):
        twin = Net()  # on meta: it needs no memory
    plan = fastinit.recorded_plan(twin)
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        model = Net()
    plan.apply_(model, parts=ours.parts(model))
    expected = dict(fastinit.materialize_(twin).named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    engine.backward(engine(torch.arange(11)).float().sum())
    engine.step()  # which writes the optimizer's copies back
    for name, values in full(deepspeed, engine.module).items():
        assert torch.equal(values, expected[name]), name
    with pytest.raises(RuntimeError, match=r"gain has copies .* before deepspeed\.initialize"):
        ours.parts(engine.module)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@on_ranks(2)
def test_what_the_optimizer_would_overwrite_is_refused(stage: int, precision: str) -> None:
    """On each rank, also one that keeps nothing of a parameter's copy."""
    deepspeed = started()
    config: dict[str, Any] = {**CONFIG, "zero_optimization": {"stage": stage}}
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1), nn.Linear(1, 1))
    plan = Plan.from_model(model, rule, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for only in (None, *plan):
        before = full(deepspeed, model)
        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0)
        with (
            gathered,
            pytest.raises(RuntimeError, match=r"has copies .* before deepspeed\.initialize"),
        ):
            plan.apply_(engine.module, only=only)
        after = full(deepspeed, model)
        assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("stage", [1, 2])
@on_ranks(2)
def test_master_weights_of_bfloat16_are_those_of_float32(stage: int) -> None:
    """DeepSpeed's own are the bfloat16 values; written by the plan they are what was rounded."""
    from fastinit.frameworks import deepspeed as ours

    deepspeed = started()
    config: dict[str, Any] = {**CONFIG, "zero_optimization": {"stage": stage}}
    config["bf16"] = {"enabled": True}
    plan = Plan.from_model(Net(), rule, seed=3)
    expected = dict(plan.apply_(Net()).named_parameters())
    model = plan.apply_(Net().to(torch.bfloat16))
    with pytest.raises(ValueError, match=r"deepspeed\.initialize makes them"):
        ours.masters(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    masters = fastinit.master_(ours.masters(engine.module), plan)
    held = torch.tensor([float(sum(part.numel for _, part in masters))])
    torch.distributed.all_reduce(held)
    assert held.item() == sum(p.numel() for p in expected.values())
    for tensor, part in masters:
        first, length = part.flat or (0, 0)
        whole = expected[part.name or ""].detach().flatten()
        assert torch.equal(tensor, whole[first : first + length]), part.name
    for name, parameter in engine.module.named_parameters():
        whole = deepspeed.utils.safe_get_full_fp32_param(parameter)
        assert torch.equal(whole, expected[name].detach()), name
    engine.backward(engine(torch.arange(11)).float().sum())
    engine.step()  # of which the parameters are the masters, rounded
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter.detach(), expected[name].detach().bfloat16()), name


@on_ranks(4)
def test_what_is_gathered_needs_no_parts() -> None:
    from fastinit.frameworks import deepspeed as ours

    deepspeed = started()
    plan = Plan.from_model(Net(), rule, seed=3)
    expected = dict(plan.apply_(Net()).named_parameters())
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        model = Net()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0):
        with pytest.raises(RuntimeError, match=r"gain is gathered .*modifier_rank=0"):
            ours.parts(model)
        plan.apply_(model)
    for name, values in full(deepspeed, model).items():
        assert torch.equal(values, expected[name]), name


@on_ranks(4)
def test_without_parts_the_line_that_works_is_named() -> None:
    deepspeed = started()
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        model = Net()
    before = {name: p.ds_tensor.clone() for name, p in model.named_parameters()}
    with pytest.raises(NotImplementedError, match=r"parts=fastinit\.frameworks\.deepspeed\.parts"):
        Plan.from_model(Net(), rule).apply_(model)
    for name, p in model.named_parameters():
        assert torch.equal(p.ds_tensor, before[name])

"""A model of two blocks with a tied weight, and a plan of it."""

import pytest
import torch
from torch import nn

import fastinit
from fastinit import Fill, Plan, recipes


class Block(nn.Module):
    """What a pipeline stage may be: a norm with buffers and two matrices, one of them orthogonal."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)


class Net(nn.Module):
    """Blocks between an embedding and the output that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.h = nn.ModuleList(Block() for _ in range(11))
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight


def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill | None:
    if name.endswith("down.weight"):
        return Fill.orthogonal()
    return recipes.torch_default(name, module, shape, config)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by all their names, and buffers."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.from_model(Net(), rule, seed=4)


@pytest.fixture(scope="module")
def whole(plan: Plan) -> dict[str, torch.Tensor]:
    return tensors(plan.apply_(Net()))


def blank() -> Net:
    """A model of which every value is 7."""
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


@pytest.fixture
def recorded() -> tuple[Net, Plan]:
    """A model that was trained, so that no buffer is as it was, and its recorded plan."""
    with fastinit.deferred(seed=4):
        model = Net()
    plan = fastinit.recorded_plan(model)
    fastinit.materialize_(model)
    for buffer in model.buffers():
        buffer.fill_(3)
    return model, plan

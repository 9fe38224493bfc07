"""LSUV of a model on one of several ranks, of which nothing says that they have it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from ranks_seen import as_rank
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import fastinit
from fastinit.variance.lsuv.ranks import Ranks


@pytest.fixture
def one_of_two() -> Iterator[None]:
    with as_rank(0, 2):
        yield


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def test_one_process_is_alone_without_a_warning() -> None:
    fastinit.lsuv_(net(), torch.randn(64, 8))


@pytest.mark.usefixtures("one_of_two")
def test_one_of_several_ranks_is_told() -> None:
    with pytest.warns(fastinit.ScaledAloneWarning, match=r"group is None.*the 2 ranks") as caught:
        result = fastinit.lsuv_(net(), torch.randn(64, 8))
    assert caught[0].filename == __file__
    assert [layer.std for layer in result.layers] == pytest.approx([1.0, 1.0], rel=1e-6)


@pytest.mark.usefixtures("one_of_two")
def test_a_group_of_this_rank_says_that_it_is_alone() -> None:
    fastinit.lsuv_(net(), torch.randn(64, 8), group=dist.new_group([0]))


@pytest.mark.usefixtures("one_of_two")
def test_where_nothing_will_be_scaled_nobody_is_told() -> None:
    frozen = net().requires_grad_(False)
    result = fastinit.lsuv_(frozen, torch.randn(64, 8))
    assert [layer.note for layer in result.layers] == ["frozen", "frozen"]
    frozen[2].weight.requires_grad_()
    with pytest.warns(fastinit.ScaledAloneWarning):
        fastinit.lsuv_(frozen, torch.randn(64, 8))


@pytest.mark.usefixtures("one_of_two")
def test_what_is_refused_warns_of_nothing() -> None:
    with pytest.raises(ValueError, match="dead"):
        fastinit.lsuv_(net(), torch.randn(64, 8), dead="leave")


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def replicated(model: nn.Module) -> nn.Module:
    model = replicate(model)
    model(torch.randn(2, 8))  # which makes what knows the group
    return model


SAID: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "DDP within": lambda model: nn.Sequential(DistributedDataParallel(model), nn.Linear(8, 8)),
    "replicate": replicated,
    "FSDP2": sharded,
}


@pytest.mark.parametrize("way", SAID)
@pytest.mark.usefixtures("one_of_two")
def test_a_model_that_says_which_ranks_have_it(way: str) -> None:
    model = SAID[way](net())
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastinit.ScaledAloneWarning)
        ranks = Ranks.of(model)
        ranks.warn_if_alone(None)
    assert not ranks.alone

"""A watch of what FSDP and DDP wrap: weights that are gathered meanwhile, attention's too."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from watched_ranks import WORLD, Block, ddp, inputs, mesh_of

import fastinit
from fastinit.base import ranks as group_of


@on_ranks(WORLD)
def test_a_weight_that_was_gathered_before_the_block_is_found_after_it() -> None:
    """FSDP2 keeps the weights of its root after a forward pass, until a backward one."""
    model = Block()
    fully_shard(model, mesh=mesh_of(WORLD))
    model(inputs())
    assert not isinstance(model.up.weight, DTensor)
    with fastinit.watch(model, group=dist.group.WORLD) as watched:
        model(inputs()).sum().backward()
    assert isinstance(model.up.weight, DTensor)
    expected = Block().up.weight
    (up, _) = watched.layers
    assert (up.weight.count, up.weight.max) == (expected.numel(), expected.max())


class Attention(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return (
            self.attention(y, x, x)[0] if self.attention.kdim == 6 else self.attention(y, y, y)[0]
        )


def fsdp1(model: nn.Module, **options: bool) -> nn.Module:
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, **options)


def attention_alone(model: Attention) -> Attention:
    fully_shard(model.attention, mesh=mesh_of(WORLD))
    return fully_shard(model, mesh=mesh_of(WORLD))


WRAPPED: dict[str, Callable[[Any], nn.Module]] = {
    "FSDP2": lambda model: fully_shard(model, mesh=mesh_of(WORLD)),
    "FSDP2, not freed": lambda model: fully_shard(
        model, mesh=mesh_of(WORLD), reshard_after_forward=False
    ),
    "FSDP2, by modules": attention_alone,
    "FSDP1": lambda model: fsdp1(model, use_orig_params=True),
    "DDP": lambda model: ddp(model)[0],
}


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 6}], ids=["fused", "three weights"])
@pytest.mark.parametrize("way", WRAPPED)
@on_ranks(WORLD)
def test_what_attention_projects_inside_is_seen_as_it_runs(way: str, options: Any) -> None:
    """With the weights that the wrapper puts there meanwhile, whatever it keeps between."""
    x = torch.randn(
        2 * WORLD, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    plain = Attention(**options)
    expected = fastinit.watch(plain, step=lambda: plain(x)).layers
    model, mine = WRAPPED[way](Attention(**options)), x.chunk(WORLD)[dist.get_rank()]
    watched = fastinit.watch(model, step=lambda: model(mine), group=dist.group.WORLD)
    assert not watched.missing
    assert [m.name.split(".")[-1] for m in watched.layers] == [
        m.name.split(".")[-1] for m in expected
    ]
    for got, want in zip(watched.layers, expected):  # merged in another order: some 1e-16
        assert math.isclose(got.forward.std, want.forward.std, rel_tol=1e-12), got.name
        assert got.forward.count == want.forward.count


@on_ranks(WORLD)
def test_without_a_group_nothing_is_communicated() -> None:
    model, rank = Block(), dist.get_rank()
    fully_shard(model, mesh=mesh_of(WORLD))
    weight, x = model.up.weight, inputs(4 + rank)
    model(x).sum().backward()
    gathered = []
    gather = group_of.all_gather
    group_of.all_gather = lambda *a: (gathered.append(1), gather(*a))[1]
    with fastinit.watch(model) as watched:
        model(x)
    group_of.all_gather = gather
    assert not gathered
    up = watched.layers[0]
    assert up.forward.count == 12 * len(x)
    assert up.weight.count == weight.to_local().numel()
    assert up.note == "this rank's part"

"""A model's own initialisation is asked of a twin: what it does to the whole is what shards get."""

from __future__ import annotations

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

import fastinit
from fastinit.frameworks.unsharded import plan_of, write_


class Net(nn.Module):
    """With ties, fans, a generator, buffers of each kind, and a value that is computed."""

    cache: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.body = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 6))
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.empty(4, 3), persistent=False)
        self.register_buffer("count", torch.empty(2, dtype=torch.int64))
        self.generator_of = torch.Generator

    def init_weights(self, seed: int = 5) -> None:
        generator = self.generator_of().manual_seed(seed)
        self.to_empty(device="cpu")
        self.head.weight = self.embed.weight  # as to_empty parts them
        nn.init.trunc_normal_(self.embed.weight, std=0.5, generator=generator)
        nn.init.xavier_uniform_(self.body[0].weight, generator=generator)
        self.body[1].reset_parameters()
        nn.init.orthogonal_(self.body[2].weight, generator=generator)
        with torch.no_grad():
            self.body[2].weight.div_(self.body[2].weight.norm())
        for layer in (self.body[0], self.body[2]):
            nn.init.zeros_(layer.bias)
        self.cache = torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.5, 0.25])).sin()
        self.count.zero_()


def net(device: str = "meta") -> Net:
    with torch.device(device):
        return Net()


def expected() -> Net:
    with fastinit.deferred(3, keep_generators=False):
        model = net("cpu")
        model.init_weights()
    return fastinit.materialize_(model)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    of_other = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(full, of_other[name]), name


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_plan_is_that_of_the_model_as_it_initialises_itself(device: str) -> None:
    model = net(device)
    before = [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]
    plan = plan_of(model, Net.init_weights, 3)
    assert plan_of(net(), lambda twin: twin.init_weights(seed=6), 3).seed == plan.seed == 3
    after = [*model.parameters(), *model.buffers()]
    assert all(t.is_meta or torch.equal(t, b) or b.isnan().any() for t, b in zip(after, before))
    assert_same(write_(model, plan, "cpu"), expected())


@on_ranks(2)
def test_shards_get_what_the_whole_has() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    model = net()
    for layer in (model.body[0], model.body[2], model):
        fully_shard(layer, mesh=mesh)
    write_(model, plan_of(model, Net.init_weights, 3), "cpu")
    assert_same(model, expected())
    assert model.head.weight is model.embed.weight

    split = (
        net()
    )  # of a tie two parameters, as tensor parallelism makes them; a buffer that is a sum
    for owner in (split.embed, split.head):
        owner.weight = nn.Parameter(distribute_tensor(owner.weight, mesh, [Shard(0)]))
    split.cache = distribute_tensor(split.cache, mesh, [Replicate()])
    split.count = DTensor.from_local(split.count, mesh, [Partial()], run_check=False)
    write_(split, plan_of(split, Net.init_weights, 3), "cpu")
    assert_same(split, expected())
    assert split.head.weight is split.embed.weight


@on_ranks(2)
@pytest.mark.parametrize("operation", ["sum", "min", "max", "product"])
def test_a_buffer_that_ranks_reduce_has_its_values(operation: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    model = net()
    of_all = [Partial(operation)]
    mesh = init_device_mesh("cpu", (2,))
    model.count = DTensor.from_local(model.count, mesh, of_all, run_check=False)
    write_(model, plan_of(model, Net.init_weights, 3), "cpu")
    assert_same(model, expected())


def _nothing(twin: nn.Module) -> None:
    pass


def _but_for_a_buffer(twin: Net) -> None:
    own, twin.count = twin.count, torch.zeros(2, dtype=torch.int64)
    twin.init_weights()
    twin.count = own


def _casts(twin: Net) -> None:
    twin.init_weights()
    twin.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("initialize", "said"),
    [
        (_nothing, "nobody wrote"),
        (_but_for_a_buffer, "nobody wrote buffer count"),
        (_casts, "of another shape or dtype"),
    ],
)
def test_what_is_not_initialised_is_an_error(initialize: object, said: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=said):
        plan_of(model, initialize)  # type: ignore[arg-type]
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_ties_are_undone_if_nothing_can_be_written() -> None:
    model = net()
    model.head.weight = nn.Parameter(torch.empty(7, 6, device="meta"))
    plan = plan_of(model, Net.init_weights)
    with pytest.raises(ValueError, match="say where they shall be"):
        write_(model, plan)
    assert model.head.weight is not model.embed.weight
    assert write_(model, plan, "cpu").head.weight is model.embed.weight

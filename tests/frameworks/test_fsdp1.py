"""FSDP1 is torch's own: flat parameters get what their elements have in the model that is not cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Plan, recipes
from fastinit.frameworks import fsdp1

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

CPU = torch.device("cpu")


class Net(nn.Module):
    """Of sizes that the ranks do not divide, tied, and with buffers."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Sequential(nn.Linear(5, 11), nn.BatchNorm1d(11), nn.Linear(11, 5))
        self.head = nn.Linear(5, 7, bias=False)
        self.gain = nn.Parameter(torch.ones(1))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.embed(x))) * self.gain
        return logits


def rule(name: str, module: nn.Module, shape: torch.Size, _: object) -> Fill:
    """Laws by element, with steps, of whole tensors, and those that ask for fans."""
    if name == "gain":
        return Fill.normal(1.0, 0.1)
    if name == "body.0.weight":
        return Fill.orthogonal()
    if name == "body.2.weight":
        return recipes.NAMES["torch_default"](name, module, shape, None)
    return Fill.uniform(-1.0, 1.0)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All values, by the names from before wrapping."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {
            name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", ""): p
            for name, p in model.named_parameters()
            for p in [p.detach().clone()]
        }


def checkpointed(net: Net, _: bool) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net.body[0] = checkpoint_wrapper(net.body[0])


def nested(net: Net, views: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    net.body = FullyShardedDataParallel(net.body, device_id=CPU, use_orig_params=views)


CHANGES: dict[str, Callable[[Net, bool], None]] = {
    "one flat parameter": lambda *_: None,
    "several": nested,
    "checkpointed": checkpointed,
}


@pytest.mark.parametrize("views", [True, False])
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
@pytest.mark.parametrize("change", CHANGES)
@on_ranks(4)
def test_parts_have_the_values_of_the_whole(views: bool, strategy: str, change: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    plan = Plan.from_model(Net(), rule, seed=3)
    expected = dict(plan.apply_(Net()).named_parameters())
    net = Net()
    CHANGES[change](net, views)
    model = FullyShardedDataParallel(
        net, device_id=CPU, use_orig_params=views, sharding_strategy=ShardingStrategy[strategy]
    )
    parts = fsdp1.parts(model)
    assert dict(Plan.from_model(model, rule, parts=parts)) == dict(plan)
    plan.apply_(model, parts=parts)
    state = whole(model)
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(state[name], values), name


@pytest.mark.parametrize("views", [True, False])
@on_ranks(2)
def test_what_is_summoned_is_whole(views: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    plan = Plan.from_model(Net(), rule, seed=4)
    expected = dict(plan.apply_(Net()).named_parameters())
    model = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=views)
    with FullyShardedDataParallel.summon_full_params(model):
        plan.apply_(model, parts=fsdp1.parts(model))
    assert all(torch.equal(p, expected[name]) for name, p in whole(model).items())


@on_ranks(2)
def test_what_would_be_dropped_is_refused() -> None:
    """SHARD_GRAD_OP keeps what it gathered from forward to backward."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model = FullyShardedDataParallel(
        Net(),
        device_id=CPU,
        use_orig_params=True,
        sharding_strategy=ShardingStrategy.SHARD_GRAD_OP,
    )
    loss = model(torch.arange(7)).sum()
    with pytest.raises(RuntimeError, match="gathered gain for computing"):
        fsdp1.parts(model)
    loss.backward()
    fsdp1.parts(model)


@on_ranks(2)
def test_what_was_recorded_goes_to_flat_parameters_by_a_plan() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with fastinit.deferred(seed=6):
        twin = Net()
    plan = fastinit.recorded_plan(twin)
    model = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=False)
    plan.apply_(model, parts=fsdp1.parts(model))
    expected = dict(fastinit.materialize_(twin).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in whole(model).items())
    plan.apply_(model, only="body.*", parts=fsdp1.parts(model))
    with pytest.raises(TypeError, match=r"_flat_param is kept elsewhere.*Plan\.apply_ alone"):
        fastinit.materialize_(model, parts=fsdp1.parts(model))


@on_ranks(2)
def test_another_order_of_memory_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    model = FullyShardedDataParallel(net, device_id=CPU, use_orig_params=True)
    with pytest.raises(NotImplementedError, match=r"weight has strides .* before it is wrapped"):
        fsdp1.parts(model)


@on_ranks(2)
def test_without_parts_the_line_that_works_is_named() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=True)
    with pytest.raises(NotImplementedError, match=r"parts=fastinit\.frameworks\.fsdp1\.parts"):
        Plan.from_model(Net(), rule).apply_(model)
    for views in (True, False):
        model = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=views)
        with pytest.raises(NotImplementedError, match=r"parts=fastinit\.frameworks\.fsdp1\.parts"):
            fastinit.init.normal_(next(model.parameters()), seed=1)

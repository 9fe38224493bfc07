"""What is no good on one rank, or differs there, is an error on all ranks that share a DTensor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import fastinit
from fastinit import Fill, Part, Plan

ZERO = Fill.constant(0.0)


@on_ranks(4)
def test_dtypes_that_differ_are_an_error_before_anything_is_written() -> None:
    """Of shards of one parameter, which no collective of FSDP2 could put together."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (4,))
    for asked in (
        {"dtype": torch.bfloat16 if rank == 3 else None},
        {"storage": {"w": torch.bfloat16 if rank == 3 else torch.float32}},
    ):
        full = distribute_tensor(torch.empty(4, 3, device="meta"), mesh, [Shard(0)])
        net = nn.ParameterDict({"w": nn.Parameter(full)})
        plan = Plan({"w": ZERO})
        with pytest.raises(RuntimeError, match=r"or in its dtype: 0, 1, 2 / 3\. "):
            plan.apply_(net, device="cpu", **asked)
        assert net["w"].is_meta


@on_ranks(4)
def test_arguments_that_are_no_good_on_one_rank() -> None:
    """The others do not wait for it: they hear what it was."""
    full = distribute_tensor(torch.zeros(4, 3), init_device_mesh("cpu", (4,)), [Shard(0)])
    net, plan = nn.ParameterDict({"w": nn.Parameter(full)}), Plan({"w": Fill.normal()})
    part = (torch.zeros(3), Part((3,)))
    calls: list[tuple[Callable[..., object], tuple[Any, ...], tuple[Any, ...], dict[str, Any]]] = [
        (plan.apply_, (net,), (net,), {"only": 3}),
        (plan.apply_, (net,), (net,), {"only": ()}),
        (plan.apply_, (net,), (net,), {"prefix": 3}),
        (plan.apply_, (net,), (net,), {"parts": 3}),
        (plan.apply_, (net,), (net,), {"storage": 3}),
        (fastinit.master_, ({"w": full}, plan), ({"w": full}, None), {}),
        (fastinit.master_, ({"w": full}, plan), ([(full, Part((4, 3), name="w")), part], plan), {}),
        (fastinit.master_, ({"w": full}, plan), ({"w": full}, plan), {"parts": {"v": part[1]}}),
        (fastinit.moments, (full,), (full,), {"higher": 3}),
        (fastinit.moments, (full,), (full,), {"dim": 0.5}),
        (fastinit.moments, (full,), (full, "x"), {}),
        (fastinit.moments, (full,), (full,), {"formats": ["no"]}),
        (fastinit.moments_many, ([full],), ([full],), {"parts": []}),
    ]
    for function, good, bad, options in calls:
        said = ""
        try:
            function(*good) if dist.get_rank() else function(*bad, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}"
        heard = said.startswith("RanksError: rank 0 failed: ")
        assert said
        assert heard == (dist.get_rank() > 0), (function, options, said)
    assert not full.to_local().any()

"""The same of torch.distributed's private names (fastinit/base/distributed_internals.py)."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fastinit.base import distributed_internals as distributed


def test_a_rank_saves_a_checkpoint_alone(tmp_path: Path) -> None:
    dist = torch.distributed
    dist.is_available() or pytest.skip("a torch without distributed")
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        writer, planner = FileSystemWriter(tmp_path), DefaultSavePlanner()
        written = distributed.save_checkpoint(writer, planner, None, alone=True)
    finally:
        dist.destroy_process_group()
    assert written.state_dict_metadata == {}
    assert (tmp_path / ".metadata").exists()


def test_process_groups_are_found_in_their_order() -> None:
    dist = torch.distributed
    dist.is_available() or pytest.skip("a torch without distributed")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        groups = [dist.group.WORLD, *map(dist.new_group, ([0, 1], [2, 3], [1, 3], [1]))]
        assert distributed.process_groups() == [g for i, g in enumerate(groups) if i != 2]
    finally:
        dist.destroy_process_group()


def test_modules_of_fsdp2_are_found() -> None:
    torch.distributed.is_available() or pytest.skip("a torch without distributed")
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = distributed.fsdp2_modules()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        for module in (model[0], model):
            fully_shard(module, mesh=mesh)
    finally:
        torch.distributed.destroy_process_group()
    found = [module for module in distributed.fsdp2_modules() if module not in before]
    assert found == [model[0], model]


def test_fsdp1_says_what_a_flat_parameter_holds() -> None:
    torch.distributed.is_available() or pytest.skip("a torch without distributed")
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
        [flat] = distributed.fsdp1_flats(model)
    finally:
        torch.distributed.destroy_process_group()
    assert not flat.is_whole
    assert not flat.is_lost
    found = [(its.key, its.shape, its.start, its.length, its.offset) for its in flat.ranges]
    assert found == [  # the second half of 20, 5 + 3 of padding, 10 + 2, and 2
        ("weight", (5, 4), 0, 0, 0),
        ("bias", (5,), 1, 4, 0),
        ("weight", (2, 5), 0, 10, 7),
        ("bias", (2,), 0, 2, 19),
    ]
    views = [its.view.numel() for its in flat.ranges if its.view is not None]
    assert views == [its.length for its in flat.ranges]


def test_ranks_have_a_store() -> None:
    torch.distributed.is_available() or pytest.skip("a torch without distributed")
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        store = distributed.default_store()
        store.set("key", "word")
        assert (store.check(["key"]), store.check(["other"])) == (True, False)
        assert store.get("key") == b"word"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without distributed")
def test_distributed() -> None:
    from torch.distributed.tensor import Shard

    assert issubclass(Shard, distributed.shard_placements())
    assert len(distributed.shard_placements()) == 2
    plain = torch.zeros(2)
    assert distributed.awaited(plain) is plain

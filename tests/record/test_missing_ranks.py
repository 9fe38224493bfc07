"""fill_missing_ on ranks: FSDP2 shards, of which a checkpoint of torch.distributed has a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastinit import agreement, audit, deferred, fill_missing_, materialize_


class Net(nn.Module):
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("table", torch.arange(4.0) / 7, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.embed(x) * self.table))


def sharded() -> Net:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    with deferred(seed=4):
        model = Net()
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def check(model: Net, expected: Net, loaded: set[str]) -> None:
    """What was loaded is 2, all else is the constructor's, and the model runs."""
    for name, parameter in model.named_parameters():
        full = parameter.full_tensor()  # type: ignore[attr-defined]
        wanted = expected.get_parameter(name)
        assert torch.equal(full, torch.full_like(full, 2.0) if name in loaded else wanted), name
    assert torch.equal(model.table, expected.table)
    assert model.out.weight is model.embed.weight
    assert model(torch.arange(7)).isfinite().all()
    assert model.out.weight is model.embed.weight


@on_ranks(2)
def test_what_a_distributed_checkpoint_lacks_is_filled(tmp_path: Path) -> None:
    with deferred(seed=4):
        expected = materialize_(Net())
    stored = {"embed.weight": torch.full((7, 4), 2.0), "body.0.weight": torch.full((6, 4), 2.0)}
    dcp.save(stored, checkpoint_id=tmp_path)

    model = sharded()
    model.to_empty(device="cpu")
    model.table.fill_(77)
    keys = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    state = get_model_state_dict(model)
    dcp.load({key: state[key] for key in keys}, checkpoint_id=tmp_path)
    done = fill_missing_(model, [key for key in state if key not in keys])
    check(model, expected, set(stored))
    assert done.filled == ["body.0.bias", "body.1.weight", "body.1.bias", "table"]
    assert done.all_merge() == done


@on_ranks(2)
def test_a_state_dict_that_is_set_in_part_leaves_the_rest_to_fill() -> None:
    """torch adds the others to the dict, from the model, and says that all keys matched."""
    with deferred(seed=4):
        expected = materialize_(Net())
    whole = {"body.1.weight": torch.full((4, 6), 2.0), "body.1.bias": torch.full((4,), 2.0)}
    options = StateDictOptions(full_state_dict=True, strict=False)
    model = sharded()
    model.to_empty(device="cpu")
    keys = list(whole)
    assert not set_model_state_dict(model, whole, options=options).missing_keys
    done = fill_missing_(model, [name for name in model.state_dict() if name not in keys])
    check(model, expected, set(keys))
    assert done.loaded == keys


@on_ranks(2)
def test_ranks_that_know_different_things_say_so() -> None:
    with deferred(seed=4):
        model = Net()
    if torch.distributed.get_rank() == 0:
        materialize_(model)
    said = audit(model).all_merge()
    assert said.names("recorded") == [
        *("embed.weight", "body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")
    ]
    assert said.tensors[0].note == "filled on rank 0; recorded on rank 1"
    assert said.names("made") == ["table"]
    assert all(len(line) <= 80 for line in str(said).splitlines())


def untied() -> Net:
    """As what cuts parameters one by one, tensor parallelism say, leaves a tied one."""
    model = sharded().to_empty(device="cpu")
    model.out.weight = nn.Parameter(torch.empty_like(model.embed.weight))
    for parameter in model.parameters():
        parameter.data.fill_(2.0)
    return model


@on_ranks(2)
def test_what_was_loaded_by_both_names_is_tied_if_it_is_so_on_all_ranks() -> None:
    rank = torch.distributed.get_rank()
    for apart, check in ((None, "once"), (0, "once"), (1, "once"), (None, "never")):
        model = untied()
        model.out.weight.data.fill_(3.0 if rank == apart else 2.0)
        agreement.check = check  # type: ignore[assignment]
        done = fill_missing_(model, [])
        agreement.check = "once"
        is_tied = apart is None and check == "once"
        assert (model.out.weight is model.embed.weight) is is_tied
        assert done.tied == ({"out.weight": "embed.weight"} if is_tied else {})
        [note] = [each.note for each in done.tensors if each.name == "out.weight"] or [""]
        assert note.startswith("" if is_tied else "not tied to embed.weight again")
        assert done.all_merge() == done


@on_ranks(2)
def test_ranks_that_loaded_different_names_do_not_wait_for_each_other() -> None:
    model = untied()
    fill_missing_(model, ["out.weight"] if torch.distributed.get_rank() else [])
    assert model.out.weight is model.embed.weight
    assert bool((model.out.weight.full_tensor() == 2.0).all())  # type: ignore[attr-defined]


@on_ranks(2)
def test_ranks_that_would_fill_differently_all_fail_and_write_nothing() -> None:
    first = torch.distributed.get_rank() == 0
    own: dict[str, dict[str, Any]] = {
        "ranks differ in the seed of their plans": {"seed": 3 if first else 4},
        "ranks differ in what their plans say": {"missing": ["body.0.bias"] if first else []},
        "dtype": {"dtype": torch.int32 if first else None},
        "has no tensor nobody": {"missing": ["nobody"] if first else ["body.0.bias"]},
        "only rows": {"missing": {"body.0.weight": slice(2) if first else None}},
    }
    for message, arguments in own.items():
        model = sharded().to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(2.0)
        if "rows" in message and first:
            model.body[0].weight = nn.Parameter(model.body[0].weight.to("meta"))
        with pytest.raises((ValueError, RuntimeError, TypeError)) as error:
            fill_missing_(model, **{"missing": ["body.0.bias", "body.1.bias"], **arguments})
        assert not first or message in str(error.value), (message, str(error.value))
        for parameter in model.parameters():
            local = parameter.to_local()  # type: ignore[attr-defined]
            assert local.is_meta or bool((local == 2.0).all()), message

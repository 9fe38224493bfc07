"""Two ranks write weights in 8 bits and fewer with the bytes that one process gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks, pool
from stored_models import contents
from torch import nn

import fastinit
from fastinit import checkpoint, deferred, recorded_plan
from fastinit.base.ranks import RanksError

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytest.importorskip("safetensors.torch")

FORMATS: dict[str, Any] = {
    "float8": "float8_e4m3fn",
    "mxfp8": "mxfp8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "by pattern": {"0.*": "nvfp4", "1.*": torch.float8_e4m3fn, "*.bias": torch.float32},
}


def recorded(layers: range = range(3)) -> nn.Sequential:
    with deferred(7):
        made = nn.Sequential()
        for i in layers:
            layer = nn.Linear(64, 64)
            nn.init.normal_(layer.weight, std=0.02)
            made.add_module(str(i), layer)
    return made


def write(folder: str, how: str, dtype: Any) -> None:
    plan, options = recorded_plan(recorded()), {"dtype": dtype, "shard_size": "9KB"}
    if how == "recorded":
        checkpoint.write(recorded(), folder, **options)
    elif how == "fsdp":
        net = fully_shard(recorded(), mesh=init_device_mesh("cpu", (2,)))
        checkpoint.write(net, folder, plan, **options)
    else:  # stages, each of which knows of its own layers alone
        mine = recorded(range(1)) if dist.get_rank() == 0 else recorded(range(1, 3))
        own = {name: plan[name] for name, _ in mine.named_parameters()}
        checkpoint.write(mine, folder, fastinit.Plan(own, seed=7), **options)


@pytest.mark.parametrize("how", ["recorded", "fsdp", "stages"])
@pytest.mark.parametrize("format", FORMATS)
def test_two_ranks_write_what_one_process_does(tmp_path: Path, format: str, how: str) -> None:
    checkpoint.write(recorded(), tmp_path / "one", dtype=FORMATS[format], shard_size="9KB")
    pool(2).run(write, str(tmp_path / "two"), how, FORMATS[format])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@on_ranks(2)
def test_values_on_several_ranks_are_refused_on_all(tmp_path: Path) -> None:
    net = fully_shard(fastinit.materialize_(recorded()), mesh=init_device_mesh("cpu", (2,)))
    folder = tmp_path / "none"
    with pytest.raises((ValueError, RanksError), match=r"0\.weight cannot be stored in mxfp4"):
        checkpoint.write(net, folder, dtype="mxfp4")
    assert not folder.exists()

"""Checkpoints: what from_pretrained loads is what materialize_ writes, to the bit."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import warm
from same_bits import assert_values
from stored_models import FAMILIES, Net, contents, family, loaded, recorded, run, small_chunks
from torch import nn

from fastinit import Fill, Plan, materialize_
from fastinit.checkpoint import safetensors as checkpoint_files
from fastinit.checkpoint import writing as checkpoint

__all__ = ["small_chunks"]  # a fixture

safetensors = pytest.importorskip("safetensors.torch")


def expected(make=Net, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return dict(materialize_(recorded(make), dtype=dtype).state_dict())


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
def test_a_module_is_stored_with_the_bits_of_materialize(tmp_path, dtype, shard_size) -> None:
    model = recorded()
    done = checkpoint.write(model, tmp_path, dtype=dtype, shard_size=shard_size)
    assert all(parameter.is_meta for parameter in model.parameters())
    want = expected(dtype=dtype)
    assert want.pop("head.weight") is not None  # tied, stored once
    have = loaded(tmp_path)
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert (have[name].dtype, have[name].shape) == (value.dtype, value.shape), name
        assert_values(have[name], value, "orthogonal" if name == "body.1.weight" else "", name)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(
        [shard.file for shard in done.layout.shards]
        + ([checkpoint_files.INDEX] if shard_size == "9KB" else [])
    )
    if shard_size == "9KB":
        index = json.loads((tmp_path / checkpoint_files.INDEX).read_text())
        assert index["weight_map"].keys() == want.keys()
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in want.values())
    else:
        eager = Net()
        safetensors.load_model(eager.to(dtype or torch.float32), tmp_path / "model.safetensors")


def test_values_that_a_model_has_are_stored(tmp_path) -> None:
    model = Net()
    checkpoint.write(model, tmp_path)
    have = loaded(tmp_path)
    assert all(bits(have[name]) == bits(value) for name, value in model.state_dict().items()
               if name != "head.weight")  # fmt: skip


def test_a_plan_is_stored_instead_of_what_was_recorded(tmp_path) -> None:
    plan = Plan({"weight": Fill.uniform(1.0, 2.0), "bias": Fill.constant(3.0)}, seed=11)
    model = recorded(lambda: nn.Linear(5, 4))
    checkpoint.write(model, tmp_path, plan)
    want = plan.apply_(nn.Linear(5, 4)).state_dict()
    assert all(bits(value) == bits(want[name]) for name, value in loaded(tmp_path).items())
    with pytest.raises(
        ValueError, match="plan does not fit the model: the plan has no parameter bias"
    ):
        checkpoint.write(model, tmp_path, Plan({"weight": Fill.normal()}))
    with pytest.raises(ValueError, match="the model has no parameter other"):
        checkpoint.write(model, tmp_path, Plan({**plan, "other": Fill.normal()}))


@pytest.mark.usefixtures("small_chunks")
def test_steps_and_parts_of_their_own_are_stored(tmp_path) -> None:
    """Of a parameter that takes many chunks, whose ends are in no part's row."""
    meta = torch.empty(5, 3, 7, 101, device="meta")
    dt = Fill.uniform(-7.0, -2.0).then("exp").then("inverse_softplus")
    some = (dt, Fill.normal(), Fill.arange(dim=2))
    fills = {
        "fused": Fill.fused({f"w{i}": (meta[:, i], fill) for i, fill in enumerate(some)}),
        "steps": dt.with_part(meta[1:4, 0, :, ::2].transpose(0, 2), Fill.normal(), own=True),
        "ramp": Fill.arange(1.0, 1.0, 0).then("log").with_part(meta[1, :, 3], dt),
        "whole": dt.with_part(meta[0, 0, :, :7], Fill.orthogonal(), own=True),
    }
    plan = Plan(fills, seed=11)

    def build() -> nn.Module:
        return nn.ParameterDict({name: nn.Parameter(torch.zeros(105, 101)) for name in fills})

    checkpoint.write(recorded(build), tmp_path, plan)
    want, have = plan.apply_(build()).state_dict(), loaded(tmp_path)
    for name, value in want.items():
        assert_values(have[name], value, "orthogonal" if name == "whole" else "", name)


@pytest.mark.parametrize("name", FAMILIES)
def test_from_pretrained_loads_the_bits_of_materialize(name: str, tmp_path) -> None:
    model = family(name)
    done = checkpoint.write(model, tmp_path / "ours", shard_size="20KB")
    assert len(done.layout.shards) > 1
    again, said = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    materialize_(model)
    have = again.state_dict()
    for key, value in model.state_dict().items():
        assert have[key].dtype == value.dtype, key
        assert bits(have[key]) == bits(value), key

    # The same tensors under the same names as save_pretrained's, and the same other files.
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = loaded(tmp_path / "ours"), loaded(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(bits(ours[key]) == bits(value) for key, value in theirs.items())
    for path in (tmp_path / "theirs").glob("*config.json"):
        assert (tmp_path / "ours" / path.name).read_text() == path.read_text()


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch, direct: bool) -> None:
    """Refused as the file is opened, or, by some, as it is written."""
    checkpoint.write(recorded(), tmp_path / "want")
    opens, write = os.open, os.pwrite

    def refuse(path, flags, *mode):
        if flags & os.O_DIRECT and not direct:
            raise OSError(22, "Invalid argument")
        return opens(path, flags, *mode)

    def refuse_write(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return write(descriptor, data[: 1 + len(data) // 2], offset)  # and in pieces of any length

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "pwrite", refuse_write)
    checkpoint.write(recorded(), tmp_path / "have")
    assert contents(tmp_path / "have") == contents(tmp_path / "want")


def test_memory_does_not_grow_with_the_model(tmp_path) -> None:
    """0.8 GB of weights, one of them 0.5 GB: less than 300 MiB more than after the import."""
    code = """
        import sys
        import torch
        from torch import nn
        from fastinit.checkpoint import writing as checkpoint
        from fastinit import deferred

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

        with deferred(7):
            model = nn.Sequential(nn.Embedding(60_000, 4096), nn.Linear(16384, 8192))
        before = peak()
        done = checkpoint.write(model, sys.argv[1], dtype=torch.bfloat16)
        print(done.bytes, (peak() - before) << 10)
    """
    if shutil.disk_usage(tmp_path).free < 2e9:
        pytest.skip("no room")
    size, grown = map(int, run(code, tmp_path).split())
    shutil.rmtree(tmp_path)
    assert size > 0.75e9
    assert grown < 300 << 20


def test_what_must_be_made_whole_has_a_bound(tmp_path) -> None:
    def large() -> nn.Module:
        layer = nn.Linear(16384, 8192, bias=False)
        nn.init.orthogonal_(layer.weight)
        return layer

    with pytest.raises(ValueError, match=r"weight \(orthogonal\) has 134,217,728 elements"):
        checkpoint.write(recorded(large), tmp_path)


@pytest.mark.parametrize(
    "size", ["", "0", "5", "5PB", "-1GB", "GB", "0.0001KB", "nanGB", "٥GB", 0, -5, 5.0, True]
)
def test_sizes_that_are_none(size) -> None:
    with pytest.raises(ValueError, match=r"shard size must be (as in 5GB|an int)"):
        checkpoint_files.parse_size(size)


def test_a_size_is_an_int_or_has_a_unit() -> None:
    sizes = [5, "1.5KB", "2GiB", " 3mb ", f"{'9' * 400}KB"]
    expected = [5, 1500, 2**31, 3 * 10**6, int("9" * 400) * 1000]
    assert list(map(checkpoint_files.parse_size, sizes)) == expected


def test_tensors_that_cannot_be_stored_are_named(tmp_path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="safetensors has no dtype for tensor wide"):
        checkpoint.write(model, tmp_path)
    named = nn.ParameterDict({"__metadata__": torch.ones(2)})  # what a header has beside tensors
    with pytest.raises(ValueError, match="safetensors has no tensors of the name __metadata__"):
        checkpoint.write(named, tmp_path)
    with pytest.raises(ValueError, match="not recorded by fastinit"):
        checkpoint.write(nn.Linear(2, 2, device="meta"), tmp_path)
    with pytest.raises(ValueError, match="floating-point"):
        checkpoint.write(nn.Linear(2, 2), tmp_path, dtype=torch.int8)


@pytest.mark.usefixtures("small_chunks")
def test_verifying_computes_every_byte_again(tmp_path) -> None:
    said: list[tuple[int, int]] = []

    def write(**options) -> checkpoint.Written:
        said.clear()
        return checkpoint.write(
            recorded(),
            tmp_path,
            shard_size="9KB",
            progress=lambda done, total: said.append((done, total)),
            **options,
        )

    planned = write().layout
    whole = contents(tmp_path)
    done = write(verify=True)
    assert (done.verified, done.bytes, done.kept) == (planned.size, 0, len(planned.shards))
    assert said[-1] == (planned.size, planned.size)
    assert said == sorted(said)
    assert len(said) > len(planned.shards)  # as it goes on
    for shard in planned.shards:
        path = tmp_path / shard.file
        for tensor, at in places(shard):
            size = tensor.nbytes
            damaged = bytearray(whole[shard.file])
            before = bytes(damaged[at : at + size])
            damaged[at : at + size] = bytes(size) if any(before) else b"\1" * size
            first = next((i for i in range(size) if damaged[at + i] != before[i]), None)
            if first is None:
                continue
            path.write_bytes(damaged)
            assert write().bytes == 0  # by its size and header it is whole
            with pytest.raises(
                ValueError, match=rf"{shard.file} is damaged in {tensor.name}, at byte"
            ):
                write(verify=True)
            assert path.read_bytes() == damaged
        damaged = bytearray(whole[shard.file])
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        assert write(verify=True, overwrite=True).bytes == shard.size
        assert said[-1][0] == said[-1][1] >= planned.size  # of the damaged one what was read, too
        assert contents(tmp_path) == whole
    (tmp_path / planned.shards[1].file).unlink()
    done = write(verify=True)
    assert done.verified + done.bytes == planned.size
    assert said[-1] == (planned.size, planned.size)
    assert contents(tmp_path) == whole


def places(shard: checkpoint_files.Shard) -> list[tuple[checkpoint_files.Stored, int]]:
    """(tensor, where it begins) of those that have bytes."""
    return [(tensor, at) for tensor, _, _, at in shard.within(0, shard.size) if tensor.nbytes]


def test_writing_needs_no_fcntl(tmp_path: Path) -> None:
    """Which Windows has not."""
    code = """
    import sys
    sys.modules["fcntl"] = None
    import torch
    from fastinit import Fill, Plan, checkpoint
    net = torch.nn.Linear(4, 2, device="meta")
    checkpoint.write(net, sys.argv[1], Plan({"weight": Fill.normal(0, 1), "bias": Fill.constant(0)}))
    """
    done = warm.run(code, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()

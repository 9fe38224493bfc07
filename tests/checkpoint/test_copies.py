"""Elements that several tensors hold, on one rank or many: copies are the same, or it is an error."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import pool
from stored_models import loaded
from torch import Tensor, nn

from fastinit import Part, checkpoint
from fastinit.base.ranks import RanksError

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

pytest.importorskip("safetensors.torch")

WHOLE = torch.arange(1.0, 97.0).view(8, 4, 3)
PART = Part((8, 4, 3), name="w")

# For each of four ranks, what its tensors hold: each element is there more than once.
HELD = {
    "rows": lambda rank: [PART.chunk(0, 2, rank % 2)],
    "columns": lambda rank: [PART.chunk(1, 2, rank // 2)],
    "in turns": lambda rank: [PART.split(0, 2, rank % 2, stride=2)],
    "in another order": lambda rank: [PART.chunk(0, 2, rank % 2).cut(0, [(2, 2), (0, 2)])],
    "flat": lambda rank: [Part(PART.shape, flat=(0, 37), name="w")]
    if rank % 2
    else [Part(PART.shape, flat=(37, 59), name="w")],
    "experts, and all of one rank twice": lambda rank: (
        [PART.select(0, expert) for expert in range(rank, 8, 4)] * (1 + (rank == 3))
    ),
    "all twice on one rank": lambda rank: [PART, PART] if rank == 3 else [],
    "all on two": lambda rank: [PART] if rank in (1, 3) else [],
    "none on some": lambda rank: [PART.chunk(0, 2, rank), PART.cut(1, [])] if rank < 2 else
    [PART.chunk(0, 2, rank - 2)],
}  # fmt: skip


def taken(part: Part) -> Tensor:
    """What the part has of WHOLE, by indexing alone."""
    if part.flat is not None:
        start, length = part.flat
        return WHOLE.flatten()[start : start + length].clone()
    held = WHOLE
    for dim, runs in enumerate(part.runs):
        where = [i for start, length in runs for i in range(start, start + length)]
        held = held.index_select(dim, torch.tensor(where, dtype=torch.int64))
    return held.clone()


def model_of(how: str, other: bool, is_buffer: bool) -> tuple[nn.Module, dict[str, Part]]:
    """What this rank has; with ``other`` the last copy of some element is another."""
    rank, model, parts = dist.get_rank(), nn.Module(), {}
    if how == "replicas of a mesh":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        local = taken(PART.chunk(0, 2, rank % 2))
        if other and rank == 3:
            local[1, 2, 0] += 1
        tensor = DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
        model.w = nn.Parameter(tensor)
        return model, {}
    for i, part in enumerate(HELD[how](rank)):
        tensor = taken(part)
        if other and rank == 3 and i == len(HELD[how](rank)) - 1:
            tensor.view(-1)[-1] += 1
        if is_buffer:
            model.register_buffer(f"t{i}", tensor)
        else:
            model.register_parameter(f"t{i}", nn.Parameter(tensor))
        parts[f"t{i}"] = part
    return model, parts


def write(folder: str, how: str, other: bool, is_buffer: bool, form: str) -> str:
    model, parts = model_of(how, other, is_buffer)
    call = checkpoint.write_dcp if form == "dcp" else checkpoint.write
    try:
        call(model, folder, parts=parts)
    except (ValueError, RanksError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("how", [*HELD, "replicas of a mesh"])
def test_copies_that_differ_are_refused(tmp_path: Path, how: str) -> None:
    same = pool(4).run(write, str(tmp_path / "same"), how, False, False, "safetensors")
    assert same == [""] * 4
    assert torch.equal(loaded(tmp_path / "same")["w"], WHOLE)
    for form in ("safetensors", "dcp"):
        (folder := tmp_path / form).mkdir()
        [said] = {*pool(4).run(write, str(folder), how, True, False, form)}
        assert said.startswith("ValueError: ")
        assert said.endswith("differ in the values of w")
        assert not list(folder.iterdir())


@pytest.mark.parametrize("how", [how for how in HELD if how != "all twice on one rank"])
def test_of_buffers_that_differ_the_first_rank_s_are_stored(tmp_path: Path, how: str) -> None:
    assert pool(4).run(write, str(tmp_path), how, True, True, "safetensors") == [""] * 4
    assert torch.equal(loaded(tmp_path)["w"], WHOLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parts_of_several_dtypes_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """A float64 that is stored beside a float32 would be rounded, and nobody asked for it."""
    model = nn.ParameterDict(
        {"a": taken(PART.chunk(0, 2, 0)), "b": taken(PART.chunk(0, 2, 1)).to(dtype)}
    )
    parts = {"a": PART.chunk(0, 2, 0), "b": PART.chunk(0, 2, 1)}
    with pytest.raises(ValueError, match="parts of w are of several dtypes"):
        checkpoint.write(model, tmp_path / "none", parts=parts)
    assert not (tmp_path / "none").exists()
    checkpoint.write(model, tmp_path / "asked", parts=parts, dtype=torch.float32)
    assert torch.equal(loaded(tmp_path / "asked")["w"], WHOLE)

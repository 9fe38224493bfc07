"""Many ranks write one checkpoint: it has the bits that one process gives it, whatever each rank has."""

import copy
import errno
import os
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dtensors import distributed
from ranks import on_ranks, pool
from stored_models import contents, loaded
from torch import nn

import fastinit
from fastinit import Part, Plan, deferred, recorded_plan
from fastinit.checkpoint import coverage, many
from fastinit.checkpoint import writing as checkpoint
from fastinit.checkpoint.safetensors import INDEX

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard

safetensors = pytest.importorskip("safetensors.torch")


class Net(nn.Module):
    """Sizes that no number of ranks divides, a tied weight, buffers, an expert dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 12)
        self.body = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.experts = nn.Parameter(torch.empty(5, 6, 7).normal_())
        self.norm = nn.BatchNorm1d(12)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(12, 37, bias=False)
        self.head.weight = self.embed.weight


def recorded() -> Net:
    with deferred(7):
        return Net()


def planned() -> Plan:
    return recorded_plan(recorded())


def assert_same_values(folder: Path, whole: Path) -> None:
    have, want = loaded(folder), loaded(whole)
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert (have[name].dtype, have[name].shape) == (value.dtype, value.shape), name
        same = have[name].flatten().view(torch.uint8), value.flatten().view(torch.uint8)
        assert torch.equal(*same), name


def whole(folder: Path, **options: object) -> Path:
    checkpoint.write(recorded(), folder, **options)  # type: ignore[arg-type]
    return folder


def mesh_of(*sizes: int) -> dist.device_mesh.DeviceMesh:
    return init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b", "c")[: len(sizes)])


def sharded(model: Net, how: str) -> Net:
    """The model as frameworks cut it, on all ranks of the default group."""
    size = dist.get_world_size()
    if how == "fsdp":
        fully_shard(model, mesh=mesh_of(size))
    elif how == "hsdp":
        fully_shard(model, mesh=mesh_of(2, size // 2))
    elif how == "fsdp of layers, and twice in a row":
        for layer in model.body:
            fully_shard(layer, mesh=mesh_of(size))
        fully_shard(model, mesh=mesh_of(size))
    else:  # rows, columns, both, strided: by the mesh
        mesh = mesh_of(2, size // 2)
        cuts = {
            "columns": lambda t: [Shard(t.dim() - 1), Replicate()],
            "both": lambda t: [Shard(0), Shard(t.dim() - 1)],
            "rows twice": lambda t: [Shard(0), Shard(0)],
        }
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim():
                    cut = cuts[how](parameter)
                    local = distributed(parameter.detach(), mesh, cut)
                    setattr(module, name, nn.Parameter(local))
        model.head.weight = model.embed.weight
    return model


HOWS = ["fsdp", "hsdp", "fsdp of layers, and twice in a row", "columns", "both", "rows twice"]


def write_sharded(folder: str, values: str, how: str, **options: object) -> tuple[int, int]:
    if values == "real":
        model = sharded(fastinit.materialize_(recorded()), how)
        done = checkpoint.write(model, folder, **options)
    elif values == "real, a plan":
        torch.manual_seed(dist.get_rank())  # what they have is not asked
        done = checkpoint.write(sharded(Net(), how), folder, planned(), **options)
    else:
        plan, model = planned(), recorded()
        done = checkpoint.write(sharded(model, how), folder, plan, **options)
        assert all(parameter.is_meta for parameter in model.parameters())
    return done.bytes, done.kept


@pytest.mark.parametrize("how", HOWS)
def test_what_is_sharded_is_stored_whole(tmp_path, how: str) -> None:
    """Real values, values with a plan, and meta with a plan: the rule is one."""
    want = whole(tmp_path / "whole", shard_size="2KB")
    for values in ("real", "real, a plan", "meta, a plan"):
        if values.startswith("meta") and how in ("columns", "both", "rows twice"):
            continue  # distribute_tensor needs values
        folder = tmp_path / values
        done = pool(4).run(write_sharded, str(folder), values, how, shard_size="2KB")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert done == [(size, 0)] * 4
        assert not list(folder.glob(".*"))
        assert_same_values(folder, want)
        if "plan" in values:
            assert contents(folder) == contents(want)
        else:
            assert (folder / INDEX).read_bytes() == (want / INDEX).read_bytes()
            # They are known again: nothing is written for the same values.
            again = pool(4).run(write_sharded, str(folder), values, how, shard_size="2KB")
            assert again == [(0, done[0][0] and len(list(folder.glob("*.safetensors"))))] * 4


def test_dtypes_of_shards(tmp_path) -> None:
    want = fastinit.materialize_(recorded())  # float32, rounded as it is stored
    checkpoint.write(want, tmp_path / "whole", dtype=torch.bfloat16)
    pool(2).run(write_sharded, str(tmp_path / "a"), "real", "fsdp", dtype=torch.bfloat16)
    assert_same_values(tmp_path / "a", tmp_path / "whole")


def write_recorded(folder: str, stop_after: int | None = None, **options: object) -> list[str]:
    """Which files this rank wrote whole."""
    write, published = os.replace, []

    def replace(source: str, target: str) -> None:
        if str(target).endswith(".safetensors"):
            if stop_after == len(published):
                raise OSError(errno.ENOSPC, "No space left on device")
            published.append(Path(target).name)
        write(source, target)

    os.replace = replace  # type: ignore[assignment]
    try:
        checkpoint.write(recorded(), folder, **options)  # type: ignore[arg-type]
    finally:
        os.replace = write
    return published


def test_ranks_divide_the_files_and_the_bits_are_those_of_one(tmp_path) -> None:
    want = contents(whole(tmp_path / "whole", shard_size="1KB"))
    files = {name for name in want if name.endswith(".safetensors")}
    for size in (2, 4):
        folder = tmp_path / str(size)
        done = pool(size).run(write_recorded, str(folder), shard_size="1KB")
        assert contents(folder) == want
        assert sorted(name for some in done for name in some) == sorted(files)
        assert all(done), "a rank had nothing to do"


def test_work_is_divided_by_bytes() -> None:
    random.seed(0)
    sizes = [random.randrange(1, 1000) for _ in range(200)]
    whose = many.divided(sizes, 7)
    loads = [sum(s for s, w in zip(sizes, whose) if w == rank) for rank in range(7)]
    # Larger ones first: no rank is further from the mean than the smallest of its pieces (Graham 1969).
    assert max(loads) - min(loads) <= max(sizes)
    assert many.divided([], 3) == []


# --- parts ---------------------------------------------------------------------------------------


def cut_model(how: str, rank: int, size: int) -> tuple[nn.Module, dict[str, Part]]:
    """A rank's part of Net, of plain tensors; its names and parts."""
    full, model, parts = Net(), nn.Module(), {}
    rng = random.Random(how)  # the same on all ranks
    for number, (name, parameter) in enumerate(full.named_parameters()):
        part = Part(tuple(parameter.shape), name=name)
        own = f"p{number}"
        if how == "rows" and parameter.dim():
            part = part.chunk(0, size, rank)
        elif how == "columns, in turns" and parameter.dim() and parameter.shape[-1] % 4 == 0:
            part = part.split(-1, size, rank, 4 // size)
        elif how == "stages":
            if number % size != rank:
                continue
        elif how == "flat":
            cuts = sorted(rng.randrange(parameter.numel() + 1) for _ in range(size - 1))
            low, high = [0, *cuts][rank], [*cuts, parameter.numel()][rank]
            part = Part(part.shape, flat=(low, high - low), name=name)
        elif how == "experts, each by itself" and name == "experts":
            for expert in range(rank, 5, size):
                model.register_parameter(f"e{expert}", nn.Parameter(torch.empty(6, 7)))
                parts[f"e{expert}"] = part.select(0, expert)
            continue
        model.register_parameter(own, nn.Parameter(torch.empty(part.local_shape)))
        parts[own] = part
    return model, parts


PARTS = ["rows", "columns, in turns", "stages", "flat", "experts, each by itself"]


def write_parts(folder: str, how: str, values: str) -> None:
    model, parts = cut_model(how, dist.get_rank(), dist.get_world_size())
    plan = planned()
    if values == "real":
        plan.apply_(model, parts=parts)
        checkpoint.write(model, folder, parts=parts.get if how == "rows" else parts)
    else:
        checkpoint.write(model, folder, plan, parts=parts)


@pytest.mark.parametrize("how", PARTS)
def test_parts_are_written_where_they_belong(tmp_path, how: str) -> None:
    want = dict(planned().apply_(Net()).named_parameters())
    for values in ("real", "a plan"):
        pool(2).run(write_parts, str(tmp_path / values), how, values)
        have = loaded(tmp_path / values)
        assert have.keys() == want.keys()
        for name, value in want.items():
            assert torch.equal(have[name], value), (values, name)


def missing_part(folder: str, wrong: str) -> str:
    rank, size = dist.get_rank(), dist.get_world_size()
    part = Part((6, 4), name="full.weight").chunk(0, size, rank)
    if wrong == "too few" and rank == 1:
        part = part.cut(0, [(0, 2)])
    elif wrong == "twice" and rank == 1:
        part = Part((6, 4), flat=(8, 16), name="full.weight")
    elif wrong == "another shape" and rank == 1:
        part = Part((6, 8), name="full.weight").chunk(1, 2, 1).chunk(0, 2, 1)
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(part.local_shape))
    with pytest.raises(ValueError, match=r"full\.weight") as caught:
        checkpoint.write(model, folder, parts={"weight": part})
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("too few", "full.weight has shape (6, 4), but its element (5, 0) is on no rank"),
        ("twice", "its element (2, 0) is in 2 different parts, of ranks 0, 1"),
        ("another shape", "ranks 0 and 1 differ in the shape of full.weight: [6, 4] and [6, 8]"),
    ],
)
def test_parts_have_every_element_once(tmp_path, wrong: str, said: str) -> None:
    answers = pool(2).run(missing_part, str(tmp_path), wrong)
    assert answers[0] == answers[1]
    assert said in answers[0]
    assert not list(tmp_path.iterdir())


def test_a_gap_is_found_in_any_layout() -> None:
    """Against counting each element, over random parts of small tensors."""
    rng = random.Random(5)
    found = 0
    for _ in range(300):
        shape = tuple(rng.randrange(1, 6) for _ in range(rng.randrange(4)))
        numel = int(torch.tensor(shape).prod()) if shape else 1
        parts = [Part(shape)]
        for _ in range(rng.randrange(4)):
            part = parts.pop(rng.randrange(len(parts)))
            if part.flat is None and shape and rng.random() < 0.8:
                dim = rng.randrange(len(shape))
                at = rng.randrange(part.local_shape[dim] + 1)
                rest = part.local_shape[dim] - at
                parts += [part.cut(dim, [(0, at)]), part.cut(dim, [(at, rest)])]
            elif part.is_whole:
                at = rng.randrange(numel + 1)
                parts += [Part(shape, flat=(0, at)), Part(shape, flat=(at, numel - at))]
            else:
                parts.append(part)
        if rng.random() < 0.3:
            parts.pop(rng.randrange(len(parts)))
        if rng.random() < 0.3 and parts:
            parts.append(rng.choice(parts))
        count = torch.zeros(shape, dtype=torch.int64)
        for part in parts:
            for _, which in part.pieces(torch.empty(part.local_shape)):
                which.on(count).add_(1)
        wrong = (count != 1).nonzero()
        got = coverage.gap(shape, parts)
        assert (got is None) == (not len(wrong)), (shape, parts)
        if got is not None:
            assert got == (tuple(wrong[0].tolist()), int(count[got[0]]))
            found += 1
    assert 50 < found < 250


def other_buffers(folder: str) -> None:
    model = fastinit.materialize_(recorded())
    model.norm.running_mean += dist.get_rank()
    checkpoint.write(model, folder)


def test_of_buffers_that_differ_the_first_rank_s_are_stored(tmp_path) -> None:
    pool(2).run(other_buffers, str(tmp_path / "many"))
    assert_same_values(tmp_path / "many", whole(tmp_path / "whole"))


@on_ranks(2)
def test_one_rank_can_write_alone(tmp_path) -> None:
    model = sharded(fastinit.materialize_(recorded()), "fsdp")
    if dist.get_rank() == 1:
        checkpoint.write(recorded(), tmp_path / "alone", no_dist=True)
        assert_same_values(tmp_path / "alone", whole(tmp_path / "whole", no_dist=True))
        with pytest.raises(ValueError, match=r"its element \(0, 0, 0\) is on no rank"):
            checkpoint.write(model, tmp_path / "half", no_dist=True)


@on_ranks(2)
def test_wrappers_have_no_part_in_names(tmp_path) -> None:
    def build() -> Net:
        return fastinit.materialize_(recorded())

    inner = build()
    inner.body[0] = checkpoint_wrapper(inner.body[0])
    inner.head = torch.compile(inner.head)
    models = {
        "compiled": torch.compile(build()),
        "replicated": nn.parallel.DistributedDataParallel(build()),
        "wrapped within": inner,
        "sharded within": sharded(copy.deepcopy(inner), "fsdp"),
    }
    checkpoint.write(build(), tmp_path / "whole")
    for name, model in models.items():
        checkpoint.write(model, tmp_path / name)
        assert_same_values(tmp_path / name, tmp_path / "whole")

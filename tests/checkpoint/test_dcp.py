"""torch.distributed.checkpoint: a plan that is loaded as a checkpoint, and checkpoints that are made."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import warm
from dtensors import distributed
from ranks import on_ranks, pool
from torch import nn

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp
from same_bits import assert_values
from test_many import HOWS, Net, cut_model, mesh_of, planned, recorded, sharded
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import fastinit
from fastinit import Fill, Plan, checkpoint, deferred, materialize_
from fastinit.base.ranks import RanksError
from fastinit.checkpoint import dcp_writing

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def materialized() -> dict[str, torch.Tensor]:
    return dict(materialize_(recorded()).state_dict())


def emptied(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(77)
    return model


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_loaded(state: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert state.keys() == want.keys()
    for name, value in want.items():
        have = whole_of(state[name])
        assert torch.equal(have, value), name


# --- a plan is a checkpoint ----------------------------------------------------------------------


def load_plan(how: str, saved: str) -> None:
    """As DCP's own load of a checkpoint of the same values gives it, under the same names."""
    want = materialized()
    model = sharded(emptied(Net()), how)
    state = get_model_state_dict(model)
    dcp.load(state, storage_reader=checkpoint.PlanReader(planned()))
    assert_loaded(state, want)
    other = get_model_state_dict(sharded(emptied(Net()), how))
    dcp.load(other, checkpoint_id=saved)
    for name, tensor in state.items():
        mine, its = (t.to_local() if isinstance(t, DTensor) else t for t in (tensor, other[name]))
        assert torch.equal(mine, its), name


@pytest.mark.parametrize("how", HOWS)
def test_a_plan_loads_as_a_checkpoint_of_its_values_does(tmp_path, how: str) -> None:
    dcp.save(materialized(), checkpoint_id=tmp_path)
    pool(4).run(load_plan, how, str(tmp_path))


def test_sizes_of_groups(tmp_path) -> None:
    dcp.save(materialized(), checkpoint_id=tmp_path)
    for size in (2, 8):  # more ranks than some dimensions have indices: some hold nothing
        pool(size).run(load_plan, "fsdp", str(tmp_path))


FILLS = {
    "law": Fill.normal(std=0.02),
    "steps": Fill.uniform(0.1, 0.2).then("log"),
    "ramp": Fill.arange(1.0, 1.0, 0),
    "padding": Fill.normal().with_part(torch.empty(12, 6, device="meta")[3], Fill.constant(0.0)),
    "orthogonal": Fill.orthogonal(),
    "fused": Fill.fused(
        {f"w{i}": (torch.empty(12, 6, device="meta")[i::3], Fill.normal()) for i in range(3)}
    ),
}


@on_ranks(4)
def test_layouts_that_no_item_of_dcp_says() -> None:
    """Dealt out in turns, as FSDP2 does over tensor parallelism: DCP knows only the first index."""
    plan = Plan(FILLS, seed=3)
    mesh = mesh_of(2, 2)
    for placements in (
        [_StridedShard(0, split_factor=2), Shard(0)],
        [_StridedShard(0, split_factor=3), Replicate()],
        [Shard(1), _StridedShard(0, split_factor=2)],
        [Replicate(), Replicate()],
    ):
        state = {name: distributed(torch.full((12, 6), 7.0), mesh, placements) for name in FILLS}
        dcp.load({"model": state}, storage_reader=checkpoint.PlanReader(plan, prefix="model."))
        model = nn.ParameterDict({name: nn.Parameter(torch.zeros(12, 6)) for name in FILLS})
        want = plan.apply_(model)
        for name in FILLS:
            shard = distributed(want[name].detach(), mesh, placements)
            have = state[name].to_local()
            assert_values(
                have, shard.to_local(), "orthogonal" if name == "orthogonal" else "", name
            )


def test_a_plan_from_a_file_and_what_it_does_not_know(tmp_path) -> None:
    planned().save(tmp_path / "plan.json")
    want = materialized()
    buffers = {name for name, _ in Net().named_buffers()}
    parameters = {name: torch.zeros_like(t) for name, t in want.items() if name not in buffers}
    dcp.load(parameters, storage_reader=checkpoint.PlanReader(tmp_path / "plan.json"))
    assert_loaded(parameters, {name: want[name] for name in parameters})
    # By the name of the file, and rounded to the dtype that is asked for.
    half = {"head.weight": torch.zeros(37, 12, dtype=torch.bfloat16)}
    other = Plan({"head.weight": Fill.constant(9.0)})
    dcp.load(
        half, checkpoint_id=tmp_path / "plan.json", storage_reader=checkpoint.PlanReader(other)
    )
    model = fastinit.Plan.load(tmp_path / "plan.json").apply_(Net().bfloat16())
    assert torch.equal(half["head.weight"], model.head.weight)
    # An optimizer's state, a number: DCP says which, or leaves them alone.
    rest = {"optim": {"state": {"exp_avg": torch.ones(2)}, "step": 5}}
    for more in ({"norm.running_mean": torch.full((12,), 7.0)}, rest):
        state = {"embed.weight": torch.zeros(37, 12), **more}
        reader = checkpoint.PlanReader(str(tmp_path / "plan.json"))
        with pytest.raises(dcp.CheckpointException, match=r"Missing key .*: (norm\.run|optim\.s)"):
            dcp.load(state, storage_reader=reader)
        assert not state["embed.weight"].any()
        dcp.load(state, storage_reader=reader, planner=DefaultLoadPlanner(allow_partial_load=True))
        assert torch.equal(state["embed.weight"], want["embed.weight"])
        assert all(state[name] is tensor for name, tensor in more.items())
    with pytest.raises(dcp.CheckpointException, match=r"scale.*expected BytesStorageMetadata"):
        dcp.load({"scale": 3.0}, storage_reader=reader)
    with pytest.raises(TypeError, match="plan must be"):
        checkpoint.PlanReader(3)
    with pytest.raises(OSError, match="nowhere"):
        checkpoint.PlanReader(tmp_path / "nowhere")


def test_what_cannot_be_written_is_named_and_nothing_is() -> None:
    plan = Plan({"a": Fill.constant(2.0), "b": Fill.orthogonal()})
    state = {"a": torch.ones(3), "b": torch.ones(3)}
    with pytest.raises(dcp.CheckpointException, match=r"ValueError: b: "):
        dcp.load(state, storage_reader=checkpoint.PlanReader(plan))
    assert torch.equal(state["a"], torch.ones(3))


class _Renamed(DefaultLoadPlanner):
    """As in torch's documentation: the checkpoint has other names than the model."""

    def set_up_planner(self, state_dict, metadata=None, is_coordinator=False) -> None:
        self.original = state_dict
        renamed = {key.replace("mine.", ""): tensor for key, tensor in state_dict.items()}
        super().set_up_planner(renamed, metadata, is_coordinator)


def test_a_planner_that_renames() -> None:
    state = {"mine.embed.weight": torch.zeros(37, 12)}
    dcp.load(state, storage_reader=checkpoint.PlanReader(planned()), planner=_Renamed())
    assert torch.equal(state["mine.embed.weight"], materialized()["embed.weight"])


@on_ranks(2)
def test_ranks_with_other_plans() -> None:
    plan = planned()
    for other in (
        Plan(plan, seed=8, aliases=plan.aliases),
        Plan({**plan, "scale": Fill.normal()}, seed=7, aliases=plan.aliases),
    ):
        model = sharded(Net(), "fsdp")
        state = {
            name: tensor for name, tensor in get_model_state_dict(model).items() if "norm" in name
        }
        reader = checkpoint.PlanReader(other if dist.get_rank() else plan)
        with pytest.raises(dcp.CheckpointException, match="ranks 1 have another plan or seed"):
            dcp.load({k: v for k, v in state.items() if k in plan}, storage_reader=reader)


@on_ranks(3)
def test_what_one_rank_cannot_write_no_rank_has_written() -> None:
    """Whatever it is that cannot be: of all ranks, of some of them, and not of each alone."""
    here, plan = dist.get_rank(), Plan({"a": Fill.constant(2.0), "b": Fill.orthogonal()})
    pair = dist.new_group([1, 2])
    for group, ranks in ((None, [0, 1, 2]), (pair, [1, 2])):
        if here not in ranks:
            continue
        for bad in ({"b": torch.ones(3)}, {"b": torch.ones(2, 2, dtype=torch.int64)}):
            state = {"a": torch.ones(3), "b": torch.ones(2, 2)} | (bad if here == 1 else {})
            with pytest.raises(dcp.CheckpointException, match=r"rank 1 failed: \w+: b\b") as no:
                dcp.load(state, storage_reader=checkpoint.PlanReader(plan), process_group=group)
            assert set(no.value.failures) == set(range(len(ranks)))
            assert torch.equal(state["a"], torch.ones(3))
    alone = {"a": torch.ones(3)} if here else {"b": torch.ones(3)}
    with pytest.raises(dcp.CheckpointException) if not here else contextlib.nullcontext():
        dcp.load(alone, storage_reader=checkpoint.PlanReader(plan), no_dist=True)
    assert here == 0 or torch.equal(alone["a"], torch.full((3,), 2.0))
    want = {"a": torch.full((3,), 2.0)}
    state = {"a": torch.zeros(3)}
    dcp.load(state, storage_reader=checkpoint.PlanReader(plan))  # they are all still together
    assert torch.equal(state["a"], want["a"])


@on_ranks(2)
def test_meta_models_get_memory_and_values() -> None:
    model = sharded(recorded(), "fsdp")
    model.norm.to_empty(device="cpu")
    state = get_model_state_dict(model)
    dcp.load(state, storage_reader=checkpoint.PlanReader(planned()))
    assert_loaded(state, materialized())


# --- checkpoints of DCP that are made ------------------------------------------------------------


def write_from(folder: str, how: str, values: str) -> None:
    if how == "parts":
        model, parts = cut_model("rows", dist.get_rank(), dist.get_world_size())
        planned().apply_(model, parts=parts)
        checkpoint.write_dcp(model, folder, parts=parts)
    elif values == "real":
        checkpoint.write_dcp(sharded(materialize_(recorded()), how), folder)
    else:
        checkpoint.write_dcp(sharded(recorded(), how), folder, planned())


def load_on(folder: str, how: str) -> None:
    state = get_model_state_dict(sharded(emptied(Net()), how))
    dcp.load(state, checkpoint_id=folder)
    assert_loaded(state, materialized())


@pytest.mark.parametrize(
    ("how", "values", "size"),
    [("fsdp", "real", 4), ("both", "real", 4), ("hsdp", "a plan", 4), ("fsdp", "a plan", 2)],
)
def test_what_is_written_is_loaded_on_other_meshes(
    tmp_path, monkeypatch, how: str, values: str, size: int
) -> None:
    pool(size).run(write_from, str(tmp_path / "dcp"), how, values)
    names = [path.name for path in (tmp_path / "dcp").iterdir()]
    assert sum(name.endswith(".distcp") for name in names) == size
    assert len(names) == size + 1
    pool(2).run(load_on, str(tmp_path / "dcp"), "fsdp")
    pool(4).run(load_on, str(tmp_path / "dcp"), "both")
    state = {name: torch.zeros_like(value) for name, value in materialized().items()}
    dcp.load(state, checkpoint_id=tmp_path / "dcp")
    assert_loaded(state, materialized())


def test_parts_are_written_for_dcp(tmp_path) -> None:
    pool(2).run(write_from, str(tmp_path), "parts", "")
    want = dict(planned().apply_(Net()).named_parameters())
    state = {name: torch.zeros_like(value) for name, value in want.items()}
    dcp.load(state, checkpoint_id=tmp_path)
    assert_loaded(state, want)


def test_in_chunks_with_a_prefix_and_as_one_file(tmp_path, monkeypatch) -> None:
    """Chunks of 64 bytes, an empty tensor, a scalar, what is made whole, a tied weight."""
    monkeypatch.setattr(dcp_writing, "CHUNK", 64)

    def build() -> nn.Module:
        model = Net()
        nn.init.orthogonal_(model.body[0].weight)
        model.empty = nn.Parameter(torch.empty(0, 4))
        model.scalar = nn.Parameter(torch.full((), 5.0))
        return model

    with deferred(7):
        model = build()
    written = checkpoint.write_dcp(model, tmp_path / "dcp", prefix="app.model.")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(written.state_dict_metadata["app.model.embed.weight"].chunks) > 20
    want = dict(materialize_(model).state_dict())
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "one.pt")
    one = torch.load(tmp_path / "one.pt")["app"]["model"]
    assert one.keys() == want.keys()
    for name, value in want.items():
        assert_values(one[name], value, "orthogonal" if name == "body.0.weight" else "", name)


def test_another_checkpoint_is_refused_or_replaced(tmp_path) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"has \.metadata of a checkpoint of DCP"):
        checkpoint.write_dcp(recorded(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpoint.write_dcp(recorded(), tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3
    state = materialized()
    dcp.load(state, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match="prefix must be all that stands"):
        checkpoint.write_dcp(recorded(), tmp_path, prefix="model", overwrite=True)
    with pytest.raises(ValueError, match="prefix must be all that stands"):
        checkpoint.PlanReader(planned(), prefix="model")


@on_ranks(4)
def test_a_mesh_of_several_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="group must be a mesh of one dimension"):
        checkpoint.write_dcp(recorded(), "nowhere", group=mesh_of(2, 2))


def full_disk(folder: str) -> str:
    write = os.fsync

    def fail(descriptor: int) -> None:
        if dist.get_rank() == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    os.fsync = fail
    try:
        with pytest.raises((OSError, RanksError)) as caught:
            checkpoint.write_dcp(recorded(), folder)
    finally:
        os.fsync = write
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_full_disk_on_one_rank(tmp_path) -> None:
    said = pool(2).run(full_disk, str(tmp_path))
    assert said[0].startswith("RanksError: rank 1 failed: OSError")
    assert "No space left" in said[1]
    left = [path.name for path in tmp_path.iterdir()]
    assert ".metadata" not in left
    assert not [name for name in left if name.endswith(".partial")]


def test_memory_does_not_grow_with_the_model(tmp_path) -> None:
    """0.4 GB in 24 tensors and in one: torch's writer keeps a reference to each, which is empty."""
    code = """
        import sys, warnings
        warnings.simplefilter("ignore")
        from torch import nn
        from fastinit import checkpoint, deferred

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

        with deferred(7):
            model = nn.ModuleList(nn.Linear(2048, 1024, bias=False) for _ in range(24))
            model.append(nn.Linear(8192, 6144, bias=False))
        checkpoint.write_dcp(nn.Linear(4, 4), sys.argv[1] + "-small")  # imports what it needs
        before = peak()
        checkpoint.write_dcp(model, sys.argv[1])
        print((peak() - before) << 10)
    """
    if shutil.disk_usage(tmp_path).free < 1e9:
        pytest.skip("no room")
    done = warm.run(code, tmp_path / "dcp")
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in Path(tmp_path, "dcp").iterdir())
    shutil.rmtree(tmp_path / "dcp")
    assert size > 0.39e9
    # A chunk; all of it would be 400 MB.
    assert int(done.stdout) < 80 << 20

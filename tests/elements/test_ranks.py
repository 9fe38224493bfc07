"""Ranks: what they draw alike, what they hold only a part of, and what is refused on each of them.

The first tests see one rank of a mesh from one process; the others run on four over gloo.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from dtensors import distributed
from ranks import pool
from torch import Tensor, nn

import fastinit
from fastinit import init
from fastinit.base import ranks as group_of
from fastinit.checkpoint import writing as checkpoint
from fastinit.fills import agreement
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.stream import laws

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from test_shards import (
    as_rank,
    fsdp,
    fsdp_and_tensor_parallel,
    fsdp_in_parts,
    mesh_of,
    one,
    sharded,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

WORLD = 4

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "uniform_": (init.uniform_, (6, 5)),
    "normal_": (init.normal_, (5,)),
    "trunc_normal_": (init.trunc_normal_, (6, 5)),
    "xavier_uniform_": (init.xavier_uniform_, (6, 5)),
    "xavier_normal_": (init.xavier_normal_, (6, 5, 3)),
    "kaiming_uniform_": (init.kaiming_uniform_, (6, 5)),
    "kaiming_normal_": (init.kaiming_normal_, (6, 5, 2, 2)),
    "lecun_uniform_": (init.lecun_uniform_, (6, 5)),
    "lecun_normal_": (init.lecun_normal_, (6, 5)),
    "variance_scaling_": (init.variance_scaling_, (6, 5)),
    "orthogonal_": (init.orthogonal_, (6, 5)),
    "delta_orthogonal_": (init.delta_orthogonal_, (6, 5, 3)),
    "sparse_": (lambda t, **k: init.sparse_(t, 0.3, **k), (6, 5)),
    "eye_": (lambda t, **_: init.eye_(t), (6, 5)),
    "dirac_": (lambda t, **_: init.dirac_(t), (6, 5, 3)),
    "constant_": (lambda t, **_: init.constant_(t, 2.0), (6, 5)),
    "ones_": (lambda t, **_: init.ones_(t), (6, 5)),
    "zeros_": (lambda t, **_: init.zeros_(t), (6, 5)),
}
CONSTANTS = ("constant_", "ones_", "zeros_")


def test_all_functions_are_asked() -> None:
    written = {n for n in init.__all__ if n.endswith("_") and not n.startswith("_")}
    assert written == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("how", ["seed", "generator", "default"])
def test_every_function_writes_its_part_of_the_whole(name: str, how: str) -> None:
    function, shape = FUNCTIONS[name]

    def run(tensor: Tensor) -> Tensor:
        """The generator's state afterwards."""
        generator = torch.Generator().manual_seed(3)
        torch.manual_seed(4)
        options = {"seed": {"seed": 5}, "generator": {"generator": generator}, "default": {}}
        assert function(tensor, **options[how]) is tensor
        return torch.stack([generator.get_state(), torch.get_rng_state()])

    full = torch.full(shape, 9.0)
    state = run(full)
    for layout in ([Shard(0), Replicate()], [Shard(0), Shard(0)], [Replicate(), Replicate()]):
        for rank in (0, 3):  # the last holds nothing of 5 in 4
            with as_rank(rank):
                mesh = mesh_of((2, 2))
                w = sharded(torch.full(shape, 9.0), mesh, layout)
                assert torch.equal(run(w), state)  # also where nothing is held
                assert torch.equal(w.to_local(), sharded(full, mesh, layout).to_local())
                meta = sharded(torch.empty(shape, device="meta"), mesh, layout)
                torch.manual_seed(4)
                before = torch.get_rng_state()
                if how != "generator":
                    assert function(meta, **({"seed": 5} if how == "seed" else {})) is meta
                assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_partial_is_refused_except_over_one_rank(name: str) -> None:
    function, shape = FUNCTIONS[name]
    full = function(torch.zeros(shape), seed=5)
    with as_rank(1):
        mesh = mesh_of((4, 1))
        w = DTensor.from_local(torch.zeros(shape), mesh, [Replicate(), Partial()], run_check=False)
        assert torch.equal(function(w, seed=5).to_local(), full)
        w = DTensor.from_local(torch.zeros(shape), mesh, [Partial(), Replicate()], run_check=False)
        with pytest.raises(NotImplementedError, match=r"placement Partial\(sum\)"):
            function(w)
        assert not w.to_local().any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_views_that_torch_gathered_are_refused(name: str) -> None:
    function, shape = FUNCTIONS[name]
    with as_rank(1):
        mesh = mesh_of((4,))
        base = nn.Parameter(sharded(torch.zeros(4, *shape), mesh, [Shard(0)]))
        before = torch.get_rng_state()
        for view in (base[2], base.chunk(4)[1][0], base.narrow(0, 1, 1)[0]):
            with pytest.raises(NotImplementedError, match="is a view that torch gathered"):
                function(view)
        assert torch.equal(torch.get_rng_state(), before)
        inner = base.narrow(1, 1, 2)  # of this rank's memory
        init.normal_(inner, seed=5)
        assert base.to_local().count_nonzero() == inner.to_local().numel()


# --- parts that are no DTensors ------------------------------------------------------------------


def _zero3(shape: tuple[int, ...]) -> nn.Parameter:
    """What deepspeed.zero.Init leaves of a parameter (0.19)."""
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size(shape)
    return parameter


def _flat(shape: tuple[int, ...]) -> nn.Parameter:
    """What FSDP1 with use_orig_params leaves of a parameter in a shard."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter._fsdp_flattened = True
    return parameter


def _flat_parameter(shape: tuple[int, ...]) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(12))
    parameter._is_flat_param = True
    return parameter


def _megatron(shape: tuple[int, ...]) -> nn.Parameter:
    """What megatron.core's parallel layers mark."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.tensor_model_parallel, parameter.partition_dim = True, 0
    return parameter


def _taken_apart(shape: tuple[int, ...]) -> nn.Parameter:
    """What DistributedDataParallel(device_mesh=) makes of a DTensor."""
    tensor = sharded(torch.zeros(4 * shape[0], *shape[1:]), mesh_of((4,)), [Shard(0)])
    parameter = nn.Parameter(tensor.to_local())
    parameter._st_info = tensor._spec
    return parameter


def _varying(shape: tuple[int, ...]) -> nn.Parameter:
    """What spmd_types says of a parameter that differs between ranks."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter._local_type = {"tp": SimpleNamespace(name="V")}
    return parameter


PARTS: dict[str, tuple[Callable[[tuple[int, ...]], nn.Parameter], str]] = {
    "ZeRO-3": (_zero3, "a stand-in of shape .*GatheredParameters"),
    "FSDP1's view": (_flat, r"a flat view of FSDP1's \(shape \(3,\).*parts=fastinit"),
    "FSDP1's flat parameter": (_flat_parameter, "FSDP1's flat parameter, which is several"),
    "Megatron": (_megatron, "one rank's part, along dimension 0"),
    "DDP's of a DTensor": (_taken_apart, r"one rank's part \(placements .*DistributedDataParallel"),
    "spmd_types": (_varying, "one rank's part of a parameter that spmd_types has split"),
}
RUN = (
    "Megatron",
    "spmd_types",
)  # with which their modules compute, and not with what is made of them


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_parts_are_refused_by_name(kind: str, name: str) -> None:
    (make, message), (function, shape) = PARTS[kind], FUNCTIONS[name]
    with as_rank(1):
        for part in (make(shape), make(shape)[:]):  # and what was taken from it
            before = torch.get_rng_state()
            if name in CONSTANTS and kind != "ZeRO-3":
                function(part)  # right for any elements
                continue
            with pytest.raises(NotImplementedError, match=message):
                function(part)
            assert not part.any()
            assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", PARTS)
def test_a_model_with_a_part_is_refused_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_of, "PATIENCE", 0.01)  # nobody is there to hear it
    make, message = PARTS[kind]
    with as_rank(1):
        model = one(torch.zeros(4))
        model.z = make((4, 6))
        with pytest.raises(NotImplementedError, match=f"z is {message}"):
            Plan({"w": Fill.normal(), "z": Fill.normal()}).apply_(model)
        assert not model.w.any()
        with pytest.raises(NotImplementedError, match=f"z is {message}"):
            Plan.from_model(model, normal)
        with pytest.raises(NotImplementedError, match=f"z is {message}"):
            checkpoint.write(model, tmp_path / "out")
        model.layer = nn.Linear(4, 2)
        why = "give group=" if kind in RUN else "its module runs with another tensor"
        with pytest.raises(NotImplementedError, match=f"z is .*{why}"):
            fastinit.lsuv_(model, torch.ones(3, 4))
        del model.layer
        requests = [ops.Request(p, laws.normal(), 3) for p in model.parameters()]
        with pytest.raises(NotImplementedError, match=rf"requests\[1\]\.tensor is {message}"):
            ops.fill_many_(requests)
        assert not model.w.any()


def test_whole_parameters_with_marks_are_written() -> None:
    gathered = _zero3((4, 6))
    gathered.data = torch.zeros(4, 6)
    init.normal_(gathered, seed=1)
    full = init.normal_(torch.empty(4, 6), seed=1)
    assert torch.equal(gathered.detach(), full)
    init.normal_(_megatron((4, 6)), seed=1)  # one rank
    with as_rank(1):
        summoned = _flat((4, 6))
        summoned.data = torch.zeros(4, 6)
        assert torch.equal(init.normal_(summoned, seed=1).detach(), full)
        part = _megatron((2, 6))  # whoever calls says which elements these are
        ops.fill_(part, laws.normal(), seed=1, window=ops.Window((6, 1), 12))
        assert torch.equal(part.detach(), full[2:])


@pytest.mark.parametrize("mark", ["_hp_mapping", "_z3_optimizer"])
def test_what_an_optimizer_will_overwrite_is_refused_and_read(mark: str) -> None:
    """As DeepSpeed marks it (0.19): None on ranks that keep nothing of the copy."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    setattr(model[1].weight, mark, None)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    its, first = model[1].weight, model[0].weight
    plan = Plan.from_model(model, normal)  # which reads its shape
    said = "has copies in DeepSpeed's optimizer.*before deepspeed.initialize"
    for write in (
        lambda: plan.apply_(model),
        lambda: init.normal_(its, seed=0),
        lambda: init.zeros_(its),
        lambda: init.orthogonal_(its[:1], seed=0),
        lambda: ops.fill_many_([ops.Request(p, laws.normal(), 3) for p in (first, its)]),
        lambda: fastinit.lsuv_(model, torch.ones(3, 4)),
    ):
        with pytest.raises(RuntimeError, match=said):
            write()
        assert all(map(torch.equal, model.parameters(), before))
    assert fastinit.moments(its).count == its.numel()
    plan.apply_(model, only="0.*")


# --- four processes ------------------------------------------------------------------------------


class Net(nn.Module):
    """Modules whose reset_parameters are torch's, of sizes that four ranks cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.conv = nn.Conv1d(3, 2, 3)
        self.norm = nn.BatchNorm1d(7)
        self.lstm = nn.LSTM(5, 3)
        self.bilinear = nn.Bilinear(3, 2, 5)
        self.register_buffer("frequencies", 2.0 ** -torch.arange(5.0), persistent=False)


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def meshes() -> list[DeviceMesh]:
    return [init_device_mesh("cpu", shape) for shape in ((4,), (2, 2), (2, 1, 2))]


def raised(call: Callable[[], object]) -> str:
    """The error of a call, which every rank has to give."""
    try:
        call()
    except (RuntimeError, NotImplementedError) as error:
        message = f"{type(error).__name__}: {error}"
    else:
        message = ""
    everywhere: list[str] = [""] * WORLD
    dist.all_gather_object(everywhere, message)
    assert all(everywhere), everywhere
    return message


def alike(tensor: Tensor) -> bool:
    """Whether all ranks have the same."""
    some = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(some, tensor)
    return all(torch.equal(tensor, other) for other in some)


def torchs_idiom() -> None:
    """to_empty and reset_parameters on FSDP2's modules give what they give on plain ones."""
    from torch.distributed.fsdp import fully_shard

    plain = Net()
    torch.manual_seed(0)
    with fastinit.patched():
        reset(plain)
    with torch.device("meta"):
        model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    asked: list[str] = []
    same = group_of.same
    group_of.same = lambda *a: (asked.append(a[2]), same(*a))[1]
    agreement._agreed.clear()  # as in a new program
    with fastinit.patched():
        reset(model)
    group_of.same = same
    assert len(asked) == 1  # of all parameters
    for (name, got), expected in zip(model.named_parameters(), plain.parameters()):
        assert torch.equal(got.full_tensor(), expected), name
    assert alike(torch.get_rng_state())


def ranks_that_differ() -> None:
    """An error on each, that names them, also on those that agree with all in their row and column."""
    for mesh in meshes():
        for odd in (0, 3):
            w = DTensor.from_local(torch.zeros(2, 2), mesh, [Shard(0)] * mesh.ndim, run_check=False)
            generator = torch.Generator().manual_seed(int(dist.get_rank() == odd))
            message = raised(lambda w=w, generator=generator: init.normal_(w, generator=generator))
            assert "ranks differ in the seed" in message
            assert f"rank {odd} drew " in message
            assert not w.to_local().any()
    torch.manual_seed(dist.get_rank())
    dist.barrier()
    agreement._agreed.clear()  # as in a new program
    for function in (init.normal_, init.orthogonal_, lambda t: init.sparse_(t, 0.5)):
        assert len(re.findall(r"drew \d", raised(lambda f=function: f(w)))) == WORLD
    torch.manual_seed(7)
    init.normal_(w)  # as they agree now, and are asked again
    assert alike(torch.get_rng_state())


def when_ranks_are_asked() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    w = DTensor.from_local(torch.zeros(2, 2), mesh, [Shard(0), Shard(0)], run_check=False)
    part = DTensor.from_local(torch.zeros(2, 2), mesh["b"], [Shard(0)], run_check=False)
    agreement._agreed.clear()
    torch.manual_seed(1)
    init.normal_(w)
    torch.manual_seed(dist.get_rank())  # not seen any more: ranks were asked, of the submesh too
    init.normal_(w)
    init.normal_(part)
    agreement.check = "always"
    assert "ranks differ" in raised(lambda: init.normal_(w))
    assert "ranks differ" in raised(lambda: init.normal_(part))
    agreement.check = "never"
    agreement._agreed.clear()
    init.normal_(w)
    agreement.check = "once"
    assert "ranks differ" in raised(lambda: init.normal_(w))


ZERO = Fill.constant(0.0)


def plans_that_differ() -> None:
    """An error on each rank of a mesh before anything is written; those outside do not wait."""

    rank = dist.get_rank()
    square, pair = init_device_mesh("cpu", (2, 2)), DeviceMesh("cpu", [0, 1])

    def model() -> nn.Module:
        net = nn.Module()
        for name, mesh in (("a", square), ("b", square), ("c", pair)):
            full = distributed(torch.zeros(4, 3), mesh, [Shard(0)] * mesh.ndim)
            net.register_parameter(name, nn.Parameter(full))
        return net

    def plan(std: float = 1.0, seed: int = 0, names: str = "abc") -> Plan:
        w = torch.empty(4, 3, device="meta")
        thirds = {str(i): (w[:, i], Fill.normal(std=std if i == 2 else 1.0)) for i in range(3)}
        return Plan(
            {name: ZERO if name != "a" else Fill.fused(thirds) for name in names}, seed=seed
        )

    def said(its: Plan, **options: object) -> str:
        net = model()
        try:
            its.apply_(net, **options)
        except Exception as error:
            assert not any(p.to_local().any() for p in net.parameters())
            return f"{type(error).__name__}: {error}"
        return ""

    odd = rank == 3
    assert said(plan()) == ""
    assert "the seed of their plans: 0, 1, 2 / 3." in said(plan(seed=int(odd)))
    assert "plans say of a parameter, or in its dtype: 0, 1, 2 / 3." in said(plan(std=1.0 + odd))
    lacks = said(plan(names="ab" if odd else "abc"))
    assert lacks.startswith("ValueError: " if odd else "RanksError: rank 3 failed: ValueError: "), (
        lacks
    )
    # Ranks 2 and 3 have no part in c, and what they would write there is nobody's concern.
    assert said(Plan({"a": ZERO, "b": ZERO, "c": Fill.normal(std=1.0 + (rank > 1))})) == ""
    whole = nn.Linear(2, 2)  # what one rank builds alone concerns nobody
    if rank == 0:
        Plan({"weight": Fill.normal(), "bias": ZERO}, seed=9).apply_(whole)
    agreement.check = "never"
    assert said(plan(seed=int(odd))) == ""
    agreement.check = "once"


def plans_of_plain_tensors() -> None:
    """Compared when that is asked for: other stages have other names."""
    rank = dist.get_rank()
    stage = Plan({f"{rank // 2}.w": Fill.normal(), "head": ZERO}, seed=3)
    agreement.compare(stage)
    agreement.compare(stage, init_device_mesh("cpu", (2, 2)))
    other = Plan({f"{rank // 2}.w": Fill.normal(std=2.0 - (rank == 1)), "head": ZERO}, seed=3)
    message = raised(lambda: agreement.compare(other))
    assert "what their plans say of the same parameters: 0 / 1" in message
    seeds = Plan(stage, seed=rank // 3)
    message = raised(lambda: agreement.compare(seeds))
    assert "in the seed of their plans: 0 on 0, 1, 2; 1 on 3" in message
    for bad in (None, {}, 3):  # on one rank: the others do not wait for it
        said = f"plan must be a fastinit.Plan, but got {type(bad).__name__}$"
        with pytest.raises(TypeError if rank == 1 else RuntimeError, match=said):
            agreement.compare(bad if rank == 1 else stage)


def meshes_of_some_ranks() -> None:
    """A rank that is not in a mesh draws, and neither waits nor is waited for."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    for ranks in ([0, 1, 2], [1, 3], [2]):
        mesh = DeviceMesh("cpu", ranks)
        full = torch.empty(2 * len(ranks), 3)
        w = sharded(full, mesh, [Shard(0)])
        state = torch.get_rng_state()
        init.normal_(full)
        torch.set_rng_state(state)
        init.normal_(w)
        if rank in ranks:
            first = 2 * ranks.index(rank)
            assert torch.equal(w.to_local(), full[first : first + 2])
    assert alike(torch.get_rng_state())


def normal(*_: object) -> Fill:
    return Fill.normal()


def fsdp1() -> None:
    """Flat views are refused, before anything is written; a model wrapped afterwards is right."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))

    plain = build()
    plan = Plan({name: Fill.normal() for name, _ in plain.named_parameters()}, seed=2)
    plan.apply_(plain)
    cpu = torch.device("cpu")
    for views in (True, False):
        model = FullyShardedDataParallel(copy.deepcopy(plain), device_id=cpu, use_orig_params=views)
        before = [p.detach().clone() for p in model.parameters()]
        own = (n.replace("_fsdp_wrapped_module.", "") for n, _ in model.named_parameters())
        names = dict.fromkeys(own, Fill.normal())
        assert "FSDP1's" in raised(lambda names=names, model=model: Plan(names).apply_(model))
        assert "FSDP1's" in raised(lambda model=model: Plan.from_model(model, normal))
        for p in model.parameters():
            assert "FSDP1's" in raised(lambda p=p: init.normal_(p, seed=1))
        assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))
        with FullyShardedDataParallel.summon_full_params(model):
            for got, expected in zip(model.parameters(), plain.parameters()):
                assert torch.equal(got, expected)
            if views:  # whole, for as long as this lasts
                init.normal_(model[0].weight, seed=1)
        with FullyShardedDataParallel.summon_full_params(model):
            if views:
                assert torch.equal(model[0].weight, init.normal_(torch.empty(8, 8), seed=1))
        if views:
            for p in model.parameters():
                init.ones_(p)  # no element differs from another
            with FullyShardedDataParallel.summon_full_params(model):
                assert all(bool((p == 1).all()) for p in model.parameters())


def emptied_buffers() -> None:
    from torch.distributed.fsdp import fully_shard

    with fastinit.deferred(seed=3):
        model = Net()
    plan = fastinit.recorded_plan(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(77)
    with pytest.raises(ValueError, match=r"buffers frequencies, norm\.running_mean, .*restore"):
        plan.apply_(model)
    plan.apply_(model, buffers="restore")
    plain = plan.apply_(Net())
    for got, expected in zip(model.buffers(), plain.buffers()):
        assert torch.equal(got, expected)
    for got, expected in zip(model.parameters(), plain.parameters()):
        assert torch.equal(got.full_tensor(), expected)


WORK = (
    torchs_idiom,
    ranks_that_differ,
    when_ranks_are_asked,
    plans_that_differ,
    plans_of_plain_tensors,
    meshes_of_some_ranks,
    fsdp1,
    emptied_buffers,
    fsdp,
    fsdp_and_tensor_parallel,
    fsdp_in_parts,
)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_on_four_ranks(work: Callable[[], None]) -> None:
    pool(WORLD).run(work)

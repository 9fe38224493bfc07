"""Ranks: four processes over gloo, what they draw alike, and what is refused on all of them."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from dtensors import distributed
from ranks import pool
from torch import Tensor, nn

import fastinit
from fastinit import init
from fastinit.base import ranks as group_of
from fastinit.fills import agreement
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
from ranks_seen import WORLD, fsdp, fsdp_and_tensor_parallel, fsdp_in_parts, normal, sharded
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

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

"""One rank of a mesh, seen from one process: each function writes its part, or refuses it by name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastinit
from fastinit import init
from fastinit.base import ranks as group_of
from fastinit.checkpoint import writing as checkpoint
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.stream import laws

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
from ranks_seen import as_rank, mesh_of, normal, one, sharded
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

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

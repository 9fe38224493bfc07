"""Shards of a model: memory for them only, progress, what was recorded or computed, and refusals."""

import pytest
import torch
import torch.distributed as dist
import warm
from torch import nn

import fastinit
from fastinit import init
from fastinit.elements import shards as shard
from fastinit.fills import operator as ops
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.stream import laws

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)
from ranks_seen import WORLD, as_rank, mesh_of, one, sharded, whole
from torch.distributed.tensor import DTensor, Partial, Shard


def test_a_partial_or_ill_shaped_tensor_is_refused_and_nothing_written() -> None:
    plan = Plan({"a": Fill.normal(), "w": Fill.normal()})
    with as_rank(0):
        mesh = mesh_of((4,))
        for placement, shape, message in (
            (Partial(), (4, 2), r"w is a DTensor with placement Partial.*redistribute\(\)"),
            (Shard(0), (4, 2), r"w is a DTensor whose local tensor has shape \(4, 2\), but its"),
        ):
            dtensor = DTensor.from_local(
                torch.zeros(shape), mesh, [placement], run_check=False, shape=(9, 2), stride=(2, 1)
            )
            model = one(dtensor)
            model.a = nn.Parameter(torch.zeros(4))
            with pytest.raises(NotImplementedError, match=message):
                plan.apply_(model)
            assert not model.a.any()
            with pytest.raises(NotImplementedError, match=r"\.tensor is a DTensor w"):
                init.normal_(dtensor, seed=1)


def test_functions_of_init_write_the_shard() -> None:
    full = init.kaiming_normal_(torch.empty(9, 6), seed=4, name="w")
    drawn = init.normal_(torch.empty(9, 6), generator=torch.Generator().manual_seed(3))
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            w = nn.Parameter(sharded(torch.zeros(9, 6), mesh, [Shard(0)]))
            versions = w._version, shard.local(w)._version
            assert init.kaiming_normal_(w, seed=4, name="w") is w
            assert torch.equal(shard.local(w), sharded(full, mesh, [Shard(0)]).to_local())
            assert w._version > versions[0]
            assert shard.local(w)._version > versions[1] or not shard.local(w).numel()
            init.normal_(w, generator=torch.Generator().manual_seed(3))
            assert torch.equal(shard.local(w), sharded(drawn, mesh, [Shard(0)]).to_local())
            assert (shard.local(init.ones_(w)) == 1).all()


def test_what_cannot_be_written_by_shards_says_so() -> None:
    with as_rank(1):
        mesh = mesh_of((4,))
        w = sharded(torch.zeros(9, 6), mesh, [Shard(0)])
        with pytest.raises(ValueError, match="seed and generator exclude"):
            init.normal_(w, seed=1, generator=torch.Generator())
        with pytest.raises(NotImplementedError, match="DTensor, which has a window of its own"):
            ops.fill_(w, laws.normal(), seed=1, window=ops.Window((6, 1)))
        assert not w.to_local().any()
        meta = sharded(torch.zeros(9, 6, device="meta"), mesh, [Shard(0)])
        assert init.normal_(meta) is meta  # as any meta tensor


def test_progress_counts_this_rank() -> None:
    with as_rank(1):
        model = one(sharded(torch.zeros(9, 6), mesh_of((4,)), [Shard(0)]))
        calls: list[tuple[int, int]] = []
        Plan({"w": Fill.normal()}).apply_(model, progress=lambda *call: calls.append(call))
        assert calls == [(18, 18)]


def test_meta_parameters_get_memory_for_the_shard_only() -> None:
    full = whole(Fill.normal(), (9, 6))
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            model = one(sharded(torch.empty(9, 6, device="meta"), mesh, [Shard(0)]))
            model.w.note = "kept"
            model.w.requires_grad_(False)
            with pytest.raises(ValueError, match="device='cpu'"):
                Plan({"w": Fill.normal()}, seed=5).apply_(model)
            Plan({"w": Fill.normal()}, seed=5).apply_(model, device="cpu")
            local = shard.local(model.w)
            assert isinstance(model.w, DTensor)
            assert isinstance(model.w, nn.Parameter)
            assert torch.equal(local, sharded(full, mesh, [Shard(0)]).to_local())
            assert local.untyped_storage().nbytes() == 4 * local.numel()
            assert (model.w.note, model.w.requires_grad) == ("kept", False)


def test_a_record_is_lost_by_sharding_and_the_error_says_what_to_do() -> None:
    with fastinit.deferred():
        model = nn.Linear(4, 8)
    with as_rank(0):
        mesh = mesh_of((4,))
        model.weight = nn.Parameter(sharded(model.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(
            ValueError, match=r"tensor weight;.*take plan = recorded_plan\(model\) b"
        ):
            fastinit.materialize_(model)


def test_computed_parameters_are_sliced() -> None:
    def build() -> nn.Module:
        model = nn.Linear(6, 9)
        with torch.no_grad():
            model.weight.copy_(torch.linalg.qr(model.weight)[0])
            model.bias.copy_(torch.arange(9.0))
        return model

    with fastinit.deferred(seed=5):
        model = build()
    plan = fastinit.recorded_plan(model)
    full = fastinit.materialize_(model)
    for rank in range(WORLD):
        with as_rank(rank):
            mesh = mesh_of((4,))
            here = nn.Linear(6, 9)
            for name, parameter in here.named_parameters():
                setattr(here, name, nn.Parameter(sharded(parameter.detach(), mesh, [Shard(0)])))
            plan.apply_(here)
            for a, b in zip(here.parameters(), full.parameters()):
                expected = sharded(b.detach(), mesh, [Shard(0)]).to_local()
                torch.testing.assert_close(shard.local(a), expected)  # torch's QR


def test_nothing_of_torch_distributed_is_imported_for_plain_tensors() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import fastinit; fastinit.init.normal_(torch.empty(3))\n"
        "sys.exit(any(m.startswith('torch.distributed') for m in set(sys.modules) - before))"
    )
    assert warm.run(code).returncode == 0

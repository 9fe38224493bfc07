"""The gate, by way of a model: watched, scaled by lsuv_, exported, sharded, or with its memory freed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensor_kinds import FREED, KINDS, data, quietly, readable, resized, two_ranks
from torch import Tensor, nn

import fastinit
from fastinit import Plan, checkpoint
from fastinit.backends import choose as backends
from fastinit.variance.lsuv.affine import LSUVError


class Gives(nn.Module):
    """A layer whose output is what it is told."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.tensor = [tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.tensor[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_model_runs_whatever_its_layers_give(kind: str) -> None:
    def run(tensor: Tensor) -> None:
        model = nn.Sequential(Gives(tensor), nn.Identity())
        with fastinit.watch(model, layers=Gives, gradients=True) as seen:
            assert model(torch.ones(1)) is tensor
        if KINDS[kind].read is None:
            assert seen.layers[0].forward.max == readable(tensor).max().item()
        else:
            assert KINDS[kind].text in seen.missing["0"]
            assert KINDS[kind].text in " ".join(seen.table().split())

    quietly(kind, run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_weight_of_any_kind(kind: str) -> None:
    """What its weight is decides what is said of it, not whether the model runs."""

    layer, x = nn.Linear(6, 4), torch.ones(1, 6)

    def run(tensor: Tensor) -> None:
        with fastinit.watch(nn.Sequential(layer)) as seen:
            layer(x)
            target = seen._targets[0]
            assert target.layer is not None
            target.layer = replace(target.layer, weight_in=tensor)  # type: ignore[arg-type]
        found = seen.layers[0] if seen.layers else None
        if found is None:  # inside a transform that makes everything its own
            assert "torch.func transform" in seen.missing["0"]
        elif KINDS[kind].read is None:
            assert found.weight is not None
        else:
            assert KINDS[kind].text in found.note

    quietly(kind, run)


@pytest.mark.parametrize("kind", KINDS)
def test_lsuv_names_the_layer_and_what_it_gives(kind: str) -> None:
    def run(tensor: Tensor) -> None:
        fastinit.lsuv_(nn.Sequential(Gives(tensor)), torch.ones(1), layers=Gives, max_iter=1)

    if kind.endswith("one element"):
        with pytest.raises(LSUVError, match="fewer than two values"):
            quietly(kind, run)
    elif KINDS[kind].read is not None:
        with pytest.raises((LSUVError, NotImplementedError), match=KINDS[kind].text):
            quietly(kind, run)
    else:
        quietly(kind, run)


def test_a_call_that_cannot_be_measured_is_said_beside_those_that_are() -> None:
    layer = Gives(data())
    with fastinit.watch(nn.Sequential(layer), layers=Gives) as seen:
        layer(data())
        layer.tensor[0] = resized(0)
        layer(data())
    assert seen.layers[0].calls == 1
    assert FREED in seen.layers[0].note


def test_a_failing_backend_ends_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory\nand more")

    model = nn.Sequential(nn.Linear(6, 4))
    with fastinit.watch(model, gradients=True) as seen:
        monkeypatch.setattr(backends, "native_is_chosen", lambda: False)  # no short way
        monkeypatch.setattr(backends, "choose_measuring", fail)
        model(data()).sum().backward()
        monkeypatch.undo()
    assert "RuntimeError: out of memory" in seen.missing["0"]


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("how", ["FSDP2", "tensor parallel"])
def test_a_sharded_model_is_watched(how: str) -> None:
    """Its weights are DTensors and its outputs asynchronous results."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = two_layers()
    with two_ranks():
        if how == "FSDP2":
            fully_shard(model[0])
            fully_shard(model)
        else:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
        with fastinit.watch(model, gradients=True) as seen:
            model(data()).square().mean().backward()
    assert [layer.name for layer in seen.layers] == ["0", "2"]
    for layer in seen.layers:
        assert layer.weight is not None
        assert layer.backward is not None
        assert layer.note == "this rank's part"


def test_lsuv_of_a_row_wise_layer() -> None:
    """Each rank sees the whole output, an asynchronous result, and scales its part of the weight."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    model = two_layers()
    with two_ranks():
        parallelize_module(model, init_device_mesh("cpu", (2,)), {"2": RowwiseParallel()})
        with torch.no_grad():  # what this group scatters is whatever was in memory
            model[2].weight.to_local().uniform_(-1, 1)
            model[2].bias.zero_()
        x, before = data().repeat(1, 2)[:, :8], model[2].weight.to_local().detach().clone()
        result = fastinit.lsuv_(model[2], x[:, :4], layers=[""])
        scaled = before * result.layers[0].scale
        torch.testing.assert_close(model[2].weight.to_local().detach(), scaled)
    assert result.layers[0].std == pytest.approx(1.0)


class Bent(nn.Module):
    """Not affine in its weight, a DTensor, so that it is repeated with the weight scaled."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x @ self.weight.full_tensor())


def test_lsuv_repeats_a_layer_whose_weight_is_a_dtensor() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    before = torch.randn(6, 6)
    with two_ranks():
        weight = distribute_tensor(before.clone(), init_device_mesh("cpu", (2,)), [Replicate()])
        model = nn.Sequential(Bent(weight))
        result = fastinit.lsuv_(model, data(), layers=Bent)
        assert model(data()).var().item() == pytest.approx(1.0, abs=0.02)  # tol
        scaled = before * result.layers[0].scale
        torch.testing.assert_close(model[0].weight.to_local().detach(), scaled)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_is_exported_also_while_it_is_watched(strict: bool) -> None:
    model = two_layers()
    with fastinit.watch(model) as seen:
        program = torch.export.export(model, (data(),), strict=strict)
    torch.testing.assert_close(program.module()(data()), model(data()))
    assert "traced" in seen.missing["0"]


def _freed(model: nn.Module, name: str) -> nn.Module:
    model.state_dict(keep_vars=True)[name].untyped_storage().resize_(0)
    return model


def _recorded_norm() -> tuple[nn.Module, Plan]:
    with fastinit.deferred():
        model = nn.BatchNorm1d(4)
    plan = fastinit.recorded_plan(model)
    return _freed(model.to_empty(device="cpu"), "running_var"), plan


def _apply(**options: Any) -> None:
    model, plan = _recorded_norm()
    plan.apply_(model, **options)


def _linear() -> nn.Module:
    return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (lambda at: fastinit.transfer_scale_(_freed(_linear(), "weight"), _linear(), 2), "layer.w"),
        (
            lambda at: fastinit.transfer_scale_(_freed(_linear(), "bias"), _linear(), 2),
            "layer.bias",
        ),
        (
            lambda at: fastinit.transfer_scale_(_linear(), _freed(_linear(), "weight"), 2),
            "following",
        ),
        (lambda at: _apply(), "running_var"),
        (lambda at: _apply(buffers="restore"), "running_var"),
        (lambda at: checkpoint.write(_freed(_linear(), "weight"), at), "weight"),
        (
            lambda at: checkpoint.write(_freed(nn.BatchNorm1d(4), "running_var"), at),
            "running",
        ),
    ],
)
def test_what_is_done_with_a_model_whose_memory_was_freed(
    use: Any, named: str, tmp_path: Any
) -> None:
    """What torch's own operators read and write asks the gate too."""
    with pytest.raises(RuntimeError, match=rf"^{named}.* has elements without memory"):
        use(tmp_path / "made")

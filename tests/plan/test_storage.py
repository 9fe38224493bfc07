"""Dtypes and formats by pattern: of parameters on meta, the first pattern that matches counts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_bits import bits
from torch import nn

import fastinit
from fastinit import Fill, Part, Plan, deferred, materialize_, recorded_plan
from fastinit.stream.rounding import rounded

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.up = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.attention = nn.MultiheadAttention(64, 2)
        self.down = nn.Linear(64, 32, bias=False)
        self.head = nn.Linear(32, 8, bias=False)
        self.turn = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        nn.init.normal_(self.up.weight)
        nn.init.normal_(self.down.weight)
        if tied:
            self.head.weight = self.embed.weight


def recorded(tied: bool = False) -> Net:
    with deferred(seed=5):
        return Net(tied)


def applied(net: nn.Module, **given: Any) -> nn.Module:
    return recorded_plan(net).apply_(net, device="cpu", **given)


WAYS: list[Callable[..., nn.Module]] = [applied, materialize_]
both = pytest.mark.parametrize("write", WAYS, ids=["apply_", "materialize_"])


@both
def test_the_first_pattern_that_matches_counts(write: Callable[..., nn.Module]) -> None:
    whole = dict(materialize_(recorded()).named_parameters())
    storage = {"down.weight": E5M2, ("down.*", "up.*"): E4M3, "*.weight": torch.float64}
    net = recorded()
    kept = net.up.weight
    for name, parameter in write(net, dtype=BF16, storage=storage).named_parameters():
        want = {"down.weight": E5M2, "up.weight": E4M3, "up.bias": E4M3, "turn": torch.complex64}
        own = want.get(name, torch.float64 if name.endswith(".weight") else BF16)
        assert parameter.dtype == own, name
        if own in (E5M2, E4M3) and name != "up.bias":  # a bias is uniform: its bounds are kept
            assert bits(parameter.detach()).equal(bits(rounded(whole[name].detach(), own))), name
        elif own == torch.float64:
            assert parameter.float().equal(whole[name]), name
    assert net.up.weight is kept


@both
def test_a_tied_parameter_goes_by_any_of_its_names(write: Callable[..., nn.Module]) -> None:
    net = write(recorded(tied=True), storage={"head.weight": BF16})
    assert net.get_parameter("embed.weight").dtype == BF16


@both
@pytest.mark.parametrize(
    ("storage", "error", "said"),
    [
        ({}, ValueError, "storage must be formats by patterns of names, but got {}"),
        ("mxfp4", TypeError, "storage must be formats by patterns of names, but got 'mxfp4'"),
        (E4M3, TypeError, "storage must be formats by patterns"),
        ({"*": "mxfp5"}, ValueError, "must have a floating-point dtype or one of mxfp8, .*'mxfp5'"),
        ({"*": torch.int8}, ValueError, "must have a floating-point dtype or .*torch.int8"),
        ({"*": None}, TypeError, "must have a torch.dtype or a format's name .*None"),
        ({7: BF16}, TypeError, "storage must be a pattern of names, or several, but got 7"),
        ({"*": BF16, "no.*": BF16}, ValueError, r"no floating-point parameter matches pattern no\.\*"),
        ({"turn": BF16}, ValueError, "no floating-point parameter matches pattern turn"),
        ({"up": BF16}, ValueError, r"pattern up \(up\.\* is all in it\)"),
        ({"embed.*": "mxfp4"}, ValueError, r"no linear weight matches pattern embed\.\*"),
        ({"*.bias": "mxfp4"}, ValueError, r"no linear weight matches pattern \*\.bias"),
        ({"attention.*": "mxfp8"}, ValueError, r"no linear weight matches pattern attention"),
        ({"head.*": "mxfp4", "no": "mxfp4"}, ValueError, "no linear weight matches pattern no"),
    ],
)  # fmt: skip
def test_what_is_no_storage_is_refused(
    write: Callable[..., nn.Module], storage: Any, error: type[Exception], said: str
) -> None:
    net = recorded()
    with pytest.raises(error, match=said):
        write(net, storage=storage)
    assert all(parameter.is_meta for parameter in net.parameters())
    materialize_(net)


@both
def test_a_weight_that_an_embedding_has_too_is_no_linear_one(
    write: Callable[..., nn.Module],
) -> None:
    said = r"no linear weight matches pattern head\.\*; parameter embed\.weight would, but"
    with pytest.raises(ValueError, match=said):
        write(recorded(tied=True), storage={"head.*": "mxfp4"})


@both
def test_blocks_in_a_model_are_tensors_of_torchao(
    write: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # as where it is not installed
    net = recorded()
    with pytest.raises(NotImplementedError, match=r"down\.weight cannot be .*torchao.*Blocks"):
        write(net, storage={"down.*": "mxfp4"})
    assert all(parameter.is_meta for parameter in net.parameters())


def test_what_has_memory_stays_as_it_is_stored() -> None:
    plan = Plan({"weight": Fill.normal(), "bias": Fill.constant(1.0)})
    layer = nn.Linear(32, 32)
    before = [parameter.clone() for parameter in layer.parameters()]
    for storage in ({"*": BF16}, {"weight": "nvfp4"}, {"bias": E4M3}):
        with pytest.raises(ValueError, match=r"there is memory that is stored otherwise"):
            plan.apply_(layer, storage=storage)
        assert all(p.equal(old) for p, old in zip(layer.parameters(), before))
    plan.apply_(layer, storage={"*": torch.float32})
    assert layer.bias.eq(1.0).all()


def test_parameters_of_one_memory_are_stored_alike() -> None:
    def net() -> nn.Module:
        with deferred(seed=5):
            made = nn.Module()
            made.a = nn.Parameter(nn.init.normal_(torch.empty(4, 8)))
            made.b = nn.Parameter(made.a.detach().view(8, 4))
        return made

    refused = net()
    with pytest.raises(ValueError, match=r"b has the memory of a parameter that .*float8_e4m3fn"):
        materialize_(refused, storage={"a": E4M3})
    assert refused.a.is_meta
    alike = materialize_(net(), storage={"*": E4M3})
    assert bits(alike.a.detach()).flatten().equal(bits(alike.b.detach()).flatten())


def test_names_are_the_plans() -> None:
    plan = Plan({f"h.{i}.weight": Fill.normal() for i in range(3)}, seed=1)
    layer = nn.Linear(4, 4, bias=False, device="meta")
    plan.apply_(layer, device="cpu", prefix="h.1.", storage={"h.1.*": E5M2})
    assert layer.weight.dtype == E5M2
    with pytest.raises(ValueError, match=r"no floating-point parameter matches pattern h\.2\.\*"):
        plan.apply_(
            nn.Linear(4, 4, bias=False, device="meta"),
            device="cpu",
            prefix="h.1.",
            storage={"h.2.*": E5M2},
        )


def test_other_ranks_may_have_what_a_pattern_matches() -> None:
    plan = Plan({f"h.{i}.weight": Fill.normal() for i in range(2)}, seed=1)
    rows = Part((8, 4), name="h.0.weight").chunk(0, 2, 1)
    storage = {"h.1.*": BF16, "h.0.*": E5M2}
    layer = nn.Linear(4, 4, bias=False, device="meta")
    plan.apply_(layer, device="cpu", parts={"weight": rows}, storage=storage)
    whole = fastinit.init.normal_(torch.empty(8, 4, dtype=E5M2), seed=1, name="h.0.weight")
    assert bits(layer.weight.detach()).equal(bits(whole[4:]))

"""LSUV of attention: what it projects inside, chosen, tied, frozen, or with a forward of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lsuv_judged import EXACT, Fault, assert_same, stds
from torch import Tensor, nn

from fastinit.variance.lsuv.lsuv import lsuv_
from tests.running_models import everything


class Attend(nn.Module):
    """Attention from one sequence to another, called in several ways."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, 4, **options)
        self.after = nn.Linear(32, 8)
        if self.attend.in_proj_bias is not None:
            nn.init.normal_(self.attend.in_proj_bias, std=0.3)

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        if y is None:
            return self.after(self.attend(x, x, x, need_weights=False)[0])
        return self.after(self.attend(x, value=y if z is None else z, key=y)[0])


def projections(model: Attend, *inputs: Tensor) -> dict[str, Tensor]:
    """What the attention's q, k and v are in a plain forward pass, by plain torch."""
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.update(
            zip("qkv", args), **{n[0]: x for n, x in kwargs.items() if n in ("key", "value")}
        )

    handle = model.attend.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    attend, found = model.attend, {}
    for i, name in enumerate("qkv"):
        weight = (
            attend.in_proj_weight[32 * i : 32 * (i + 1)]
            if attend.in_proj_weight is not None
            else getattr(attend, f"{name}_proj_weight")
        )
        found[name] = seen[name] @ weight.detach().T
        if attend.in_proj_bias is not None:
            found[name] += attend.in_proj_bias.detach()[32 * i : 32 * (i + 1)]
    return found


ATTENTIONS: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "self": ({"batch_first": True}, [(8, 20, 32)]),
    "cross": ({}, [(20, 8, 32), (30, 8, 32)]),
    "one sequence": ({"bias": False}, [(20, 32)]),
    "other widths": ({"kdim": 24, "vdim": 16}, [(20, 8, 32), (30, 8, 24), (30, 8, 16)]),
    "no bias, other widths": ({"kdim": 24, "bias": False}, [(20, 8, 32), (30, 8, 24), (30, 8, 32)]),
    "added keys": ({"add_bias_kv": True, "add_zero_attn": True}, [(20, 8, 32), (30, 8, 32)]),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_input_projections_of_attention(kind: str, training: bool) -> None:
    options, shapes = ATTENTIONS[kind]
    model, inputs = Attend(**options).train(training), [torch.randn(shape) for shape in shapes]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = lsuv_(model, *inputs, target_std={"attend.k_proj": 0.7})
    for name, out in projections(model, *inputs).items():
        assert out.std().item() == pytest.approx(0.7 if name == "k" else 1.0, rel=1e-5)
    found = stds(model, *inputs)
    assert found == dict.fromkeys(("attend", "after"), EXACT)
    names = [f"attend.{x}_proj" for x in ("q", "k", "v", "out")]
    assert [m.name for m in result.layers] == [*names, "after"]
    assert len(set(result.scales.values())) == 5
    for name, parameter in model.named_parameters():
        if name == "attend.in_proj_weight":
            scales = torch.tensor([result.scales[n] for n in names[:3]]).repeat_interleave(32)
            torch.testing.assert_close(parameter, before[name] * scales[:, None])
        elif name.endswith("_proj_weight"):
            scale = result.scales[name.removesuffix("_weight")]
            torch.testing.assert_close(parameter, before[name] * scale)
        elif not name.endswith("weight"):
            assert parameter.equal(before[name])
    table = result.table()
    assert all(table.count(name) == 1 for name in names)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("attend", ["attend.q_proj", "attend.k_proj", "attend.v_proj", "attend.out_proj"]),
        (
            nn.MultiheadAttention,
            ["attend.q_proj", "attend.k_proj", "attend.v_proj", "attend.out_proj"],
        ),
        (["attend.k_proj", "after"], ["attend.k_proj", "after"]),
        (["attend.out_proj"], ["attend.out_proj"]),
        (lambda name, module: name.endswith("v_proj"), ["attend.v_proj"]),
    ],
)
def test_projections_to_choose(which: Any, expected: list[str]) -> None:
    model, x = Attend(), torch.randn(20, 8, 32)
    rows = model.attend.in_proj_weight.detach().clone().chunk(3)
    result = lsuv_(model, x, layers=which)
    assert [m.name for m in result.layers] == expected
    for name, old, new in zip("qkv", rows, model.attend.in_proj_weight.chunk(3)):
        assert new.equal(old) != (f"attend.{name}_proj" in expected)


def test_projections_over_batches_centered_and_after_the_activation() -> None:
    model, x = Attend(), torch.randn(20, 30, 32) * torch.linspace(0.2, 3, 30)[:, None] + 0.5
    nn.init.zeros_(model.attend.in_proj_bias)
    result = lsuv_(model, batches=[x[:, :10], x[:, 10:]])
    assert 1 < result.passes <= 3
    for out in projections(model, x).values():
        assert out.var().item() == pytest.approx(1.0, abs=0.02)
    lsuv_(model, x, center=True)
    for out in projections(model, x).values():
        assert (out.std().item(), out.mean().item()) == (EXACT, pytest.approx(0.0, abs=1e-5))
    lsuv_(model, x, activation=torch.relu)
    for out in projections(model, x).values():
        assert out.relu().var().item() == pytest.approx(1.0, abs=0.02)


def test_orthonormal_projections() -> None:
    model, x = Attend(), torch.randn(20, 8, 32)
    result = lsuv_(model, x, pre="orthonormal")
    for name, weight in zip("qkv", model.attend.in_proj_weight.detach().chunk(3)):
        gram = weight @ weight.T / result.scales[f"attend.{name}_proj"] ** 2
        torch.testing.assert_close(gram, torch.eye(32), atol=1e-5, rtol=0)


def test_tied_and_frozen_projections() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.MultiheadAttention(32, 4) for _ in range(3))
            self.b.in_proj_weight = self.a.in_proj_weight
            self.c.in_proj_weight.requires_grad_(False)
            nn.init.normal_(self.b.in_proj_bias, std=0.3)

        def forward(self, x: Tensor) -> Tensor:
            for attend in (self.a, self.b, self.c):
                x = attend(x, x, x)[0]
            return x

    model, x = Net(), torch.randn(20, 8, 32)
    frozen, bias = model.c.in_proj_weight.clone(), model.b.in_proj_bias.detach().clone()
    result = lsuv_(model, x, center=True)
    assert stds(model, x) == dict.fromkeys("abc", EXACT)  # b saw a's scales
    notes = {m.name: m.note for m in result.layers if m.note}
    tied = {f"b.{n}_proj": f"tied to a.{n}_proj" for n in "qkv"}
    assert notes == tied | {f"c.{n}_proj": "frozen" for n in "qkv"}
    assert model.c.in_proj_weight.equal(frozen)
    assert model.b.in_proj_bias.equal(bias)


def test_keys_and_values_with_one_weight() -> None:
    model = Attend(kdim=24, vdim=24)
    model.attend.v_proj_weight = model.attend.k_proj_weight
    inputs = [torch.randn(20, 8, 32), torch.randn(30, 8, 24)]
    value_bias = model.attend.in_proj_bias.detach()[64:].clone()
    result = lsuv_(model, *inputs, center=True)
    assert projections(model, *inputs)["k"].std().item() == EXACT
    assert model.attend.in_proj_bias[64:].equal(value_bias)
    assert stds(model, *inputs)["attend"] == EXACT
    assert {m.name: m.note for m in result.layers}["attend.v_proj"] == "tied to attend.k_proj"


def test_tied_layers_with_biases_of_their_own() -> None:
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    )
    model[2].weight = model[0].weight
    bias, x = model[2].bias.detach().clone(), torch.rand(99, 32)
    lsuv_(model, x, center=True)
    assert model[2].bias.equal(bias)
    assert stds(model, x)["4"] == EXACT  # so it saw the second as it now is
    assert model(x).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_attention_with_a_forward_of_its_own_keeps_its_input_projections() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x, x, x)

    model, x = nn.Sequential(Own(32, 4)), torch.randn(20, 8, 32)
    weight = model[0].in_proj_weight.detach().clone()
    result = lsuv_(model, x)
    assert model[0].in_proj_weight.equal(weight)
    assert [m.name for m in result.layers] == ["0.out_proj"]
    assert set(result.passed) == {"0.q_proj", "0.k_proj", "0.v_proj"}
    with torch.no_grad():
        assert model(x)[0].std().item() == EXACT


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["inside", "after"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 24, "vdim": 16}])
def test_a_fault_in_attention_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    widths: dict[str, int],
    place: str,
    error: type[BaseException],
) -> None:
    model = Attend(**widths)
    inputs = [torch.randn(20, 8, 32)] + [torch.randn(30, 8, n) for n in widths.values()]
    within: list[Tensor] = []

    def act(*args: Any, **kwargs: Any) -> Any:
        within.append(next(model.attend.parameters()).clone())
        raise error("at its turn")

    if place == "after":
        model.after = nn.Sequential(Fault(act))
    else:
        monkeypatch.setattr(nn.functional, "multi_head_attention_forward", act)
    before = everything(model)
    with pytest.raises(error, match="at its turn"):
        lsuv_(model, *inputs, center=True)
    assert_same(before, everything(model))
    assert within[0].equal(next(model.attend.parameters())) == (place == "after")
    with pytest.raises(error, match="at its turn"):
        lsuv_(model, *inputs, pre="orthonormal", center=True)
    assert_same(before, everything(model))


def test_attention_that_fails_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tries = nn.functional.multi_head_attention_forward, []

    def attend(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise RuntimeError("at its turn")
        return plain(*args, **kwargs)

    class Patient(Attend):
        def forward(self, *inputs: Tensor) -> Tensor:
            try:
                return super().forward(*inputs)
            except RuntimeError:
                return super().forward(*inputs)

    model, x = Patient(), torch.randn(20, 8, 32)
    monkeypatch.setattr(nn.functional, "multi_head_attention_forward", attend)
    lsuv_(model, x)
    assert len(tries) == 2
    assert stds(model, x)["after"] == EXACT
    for out in projections(model, x).values():
        assert out.std().item() == EXACT

"""LSUV: every layer's output has the std asked for after one pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lsuv_judged import EXACT, mlp, stds
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastinit.variance.lsuv import schedules
from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.transfer import transfer_scale_


@pytest.mark.parametrize("bias", [True, False])
def test_one_forward_and_every_layer_has_unit_std(bias: bool) -> None:
    model, x = mlp(30, bias=bias), torch.randn(256, 64)
    forwards = []
    model.register_forward_pre_hook(lambda module, args: forwards.append(args))
    result = lsuv_(model, x)
    assert len(forwards) == result.passes == 1
    found = stds(model, x)
    assert len(found) == 30
    for measured in result.layers:
        assert measured.std == EXACT
        assert found[measured.name] == EXACT
    assert list(result.scales) == [str(2 * i) for i in range(30)]


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 5, 3), (8, 4, 30)),
    "2d": (nn.Conv2d(4, 6, 3, stride=2), nn.ConvTranspose2d(6, 5, 3, groups=1), (8, 4, 15, 17)),
    "3d": (nn.Conv3d(4, 6, 2), nn.ConvTranspose3d(6, 5, 2), (3, 4, 6, 7, 8)),
    "no batch": (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3), (4, 20, 20)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind: str) -> None:
    first, second, shape = CONVOLUTIONS[kind]
    model, x = nn.Sequential(first, nn.Tanh(), second), torch.randn(shape)
    if kind == "2d":
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    lsuv_(model, x)
    found = stds(model, x)
    assert found["0"] == EXACT
    assert found["2"] == EXACT


def test_embeddings_bilinear_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 32, padding_idx=0)
            self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
            self.mix = nn.Bilinear(32, 32, 16)
            self.idle = nn.Linear(3, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.mix(x, self.attend(x, x, x)[0])

    model, tokens = Net(), torch.randint(1, 50, (8, 20))
    nn.init.normal_(model.attend.out_proj.bias, std=0.3)
    result = lsuv_(model, tokens)
    found = stds(model, tokens)
    assert found == dict.fromkeys(("embed", "attend", "mix"), EXACT)
    assert model.embed.weight[0].eq(0).all()
    projections = [f"attend.{x}_proj" for x in ("q", "k", "v", "out")]
    assert [m.name for m in result.layers] == ["embed", *projections, "mix"]
    assert result.passed == {"idle": "not called"}


def test_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    result = lsuv_(model, input_ids=torch.randint(0, 100, (4, 32)))
    notes = {m.name: m.note for m in result.layers}
    assert notes["lm_head"] == "tied to transformer.wte"
    assert notes["transformer.h.1.mlp.c_proj"] == ""
    for measured in result.layers:
        if not measured.note:
            assert measured.std == EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = mlp(8).to(dtype), torch.randn(512, 64, dtype=dtype)
    lsuv_(model, x)
    # Each layer's weights and outputs are rounded (bfloat16: to 2^-9), and the next sees that.
    for std in stds(model, x).values():
        assert std == pytest.approx(1.0, abs=8 * 2.0**-9)


def test_execution_order_decides_not_registration() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    result = lsuv_(Net(), torch.randn(100, 8), target_std=schedules.alternating(1.25))
    assert [m.name for m in result.layers] == ["first", "last"]
    assert [m.target for m in result.layers] == [math.sqrt(1.25), 1.0]
    assert result.product == 1.0


def test_targets_by_number_and_by_name() -> None:
    model, x = mlp(3), torch.randn(256, 64)
    lsuv_(model, x, target_std=0.5)
    assert stds(model, x)["4"] == pytest.approx(0.5, rel=1e-5)
    lsuv_(model, x, target_std={"2": 3.0})
    found = stds(model, x)
    assert (found["0"], found["2"]) == (EXACT, pytest.approx(3.0, rel=1e-5))


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (nn.Conv2d, ["0"]),
        ((nn.Linear,), ["3"]),
        (["3"], ["3"]),
        ("0", ["0"]),
        (lambda name, module: name == "0", ["0"]),
    ],
)
def test_layers_to_choose(which: Any, expected: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    result = lsuv_(model, torch.randn(9, 1, 8, 8), layers=which)
    assert [m.name for m in result.layers] == expected


def test_tied_frozen_and_computed_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(16, 16).requires_grad_(False)
            self.normed = parametrizations.spectral_norm(nn.Linear(16, 16))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.normed(self.frozen(self.embed(tokens))))

    model, tokens = Net().eval(), torch.randint(0, 40, (16, 16))
    frozen = model.frozen.weight.clone()
    result = lsuv_(model, tokens)
    notes = {m.name: m.note for m in result.layers}
    assert notes == {"embed": "", "frozen": "frozen", "head": "tied to embed"}
    assert result.passed["normed"] == "its weight is computed"
    found = stds(model, tokens)
    assert found["embed"] == EXACT
    assert model.frozen.weight.equal(frozen)
    head = next(m for m in result.layers if m.name == "head")
    assert found["head"] == pytest.approx(head.std, rel=1e-5)  # as it is, with the scaled weight


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return x


def test_a_module_called_several_times() -> None:
    model, x = Loop(), torch.randn(200, 32)
    first = lsuv_(model, x)
    assert stds(model, x)["step"] == EXACT
    assert first.layers[0].calls == 3
    pooled = lsuv_(model, x, reuse="pool")
    assert 1 < pooled.passes <= 3
    outputs: list[Tensor] = []
    model.step.register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    model(x)
    assert torch.cat(outputs).var().item() == pytest.approx(1.0, abs=0.02)


def test_batches_count_together() -> None:
    model, x = mlp(4), torch.randn(400, 64) * torch.linspace(0.2, 3, 400)[:, None]
    parts = [x[:100], (x[100:150],), {"input": x[150:]}]
    result = lsuv_(model, batches=parts)
    assert result.passes <= 3
    for std in stds(model, x).values():
        assert std**2 == pytest.approx(1.0, abs=0.02)
    whole = mlp(4)
    whole.load_state_dict(model.state_dict())
    lsuv_(whole, x)
    for a, b in zip(whole.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=0.03, atol=1e-6)


def test_after_the_activation() -> None:
    model, x = mlp(4), torch.randn(256, 64)
    lsuv_(model, x, activation=torch.relu)
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.ReLU):
            assert h.var().item() == pytest.approx(1.0, abs=0.02)


def test_center() -> None:
    model, x = mlp(4), torch.rand(256, 64)
    result = lsuv_(model, x, center=True)
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            assert h.mean().item() == pytest.approx(0.0, abs=1e-5)
            assert h.std().item() == EXACT
    assert all(m.shift != 0 for m in result.layers)


def test_a_layer_that_is_not_affine_is_repeated_alone() -> None:
    calls: list[Tensor] = []

    class Squash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32) * 0.01)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return torch.sinh(x @ self.weight)

    model, x = nn.Sequential(nn.Linear(16, 32), Squash(), nn.Linear(32, 4)), torch.randn(300, 16)
    result = lsuv_(model, x, layers=(nn.Linear, Squash))
    assert len(calls) == result.layers[1].iterations > 2
    found = stds(model, x)
    assert found["1"] ** 2 == pytest.approx(1.0, abs=0.02)
    assert found["2"] == EXACT
    few = lsuv_(model, x * 9, layers=Squash, max_iter=1)
    assert few.layers[0].note == "not within 0.02 after 1"


def test_orthonormal_first() -> None:
    model, x = mlp(3, bias=False), torch.randn(256, 64)
    result = lsuv_(model, x, pre="orthonormal")
    for measured, module in zip(result.layers, model[::2]):
        gram = module.weight @ module.weight.T / measured.scale**2
        torch.testing.assert_close(gram, torch.eye(64), atol=1e-5, rtol=0)
        assert measured.std == EXACT


def test_the_table_fits_a_terminal() -> None:
    table = lsuv_(mlp(3), torch.randn(64, 64)).table()
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "target" in table


def test_transfer_scale_leaves_the_function() -> None:
    model, x = mlp(2), torch.randn(64, 64)
    before, weight = model(x), model[0].weight.clone()
    transfer_scale_(model[0], model[2], 4.0)  # a power of two: exact
    assert model[0].weight.equal(4 * weight)
    torch.testing.assert_close(model(x), before)
    with pytest.raises(ValueError, match="factor must be positive"):
        transfer_scale_(model[0], model[2], 0.0)
    with pytest.raises(ValueError, match="following has no weight"):
        transfer_scale_(model[0], model[1], 2.0)

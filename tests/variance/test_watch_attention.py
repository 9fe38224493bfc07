"""MultiheadAttention: its projections, which run inside it, are seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from watching import assert_moments, hooks

from fastinit.variance.watch.watch import watch


def test_attention_and_encoders() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2
    )
    x = torch.randn(4, 10, 32)
    with watch(model, gradients=True) as w:
        model(x).square().sum().backward()
    names = [layer.name for layer in w.layers]
    each = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")] + ["linear1", "linear2"]
    assert names == [f"layers.{i}.{name}" for i in range(2) for name in each]
    attention = w.layers[3]
    assert_moments(attention.forward, model.layers[0].self_attn(x, x, x)[0])
    assert attention.backward is not None
    assert (attention.fan_in, attention.units) == (32, 32)
    assert w.missing == {}
    model.eval()
    with watch(model) as w, torch.no_grad():  # where torch would take its fused path
        model(x)
    assert [layer.name for layer in w.layers] == names


WIDTHS: dict[str, tuple[int, int]] = {"fused": (32, 32), "separate": (24, 16)}


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_input_projections_of_attention(widths: str) -> None:
    kdim, vdim = WIDTHS[widths]
    model = nn.MultiheadAttention(32, 4, kdim=kdim, vdim=vdim)
    inputs = [torch.randn(shape) for shape in ((20, 8, 32), (30, 8, kdim), (30, 8, vdim))]
    nn.init.normal_(model.in_proj_bias)
    if widths == "fused":
        weights = list(model.in_proj_weight.detach().chunk(3))
    else:
        weights = [model.q_proj_weight, model.k_proj_weight, model.v_proj_weight]
    with torch.no_grad():
        weights[1][:5] = 0  # five keys that never vary
    before = hooks(model)
    plain = model(*inputs)[0]
    plain.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with watch(model, gradients=True) as w:
        out = model(inputs[0], inputs[1], value=inputs[2])[0]
        out.square().sum().backward()
    assert hooks(model) == before
    torch.testing.assert_close(out, plain)
    for parameter, grad in zip(model.parameters(), grads):
        torch.testing.assert_close(parameter.grad, grad)
    assert [layer.name for layer in w.layers] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    product = 1.0
    for layer, x, weight, bias in zip(w.layers, inputs, weights, model.in_proj_bias.chunk(3)):
        assert_moments(layer.forward, x @ weight.T + bias)
        assert_moments(layer.weight, weight)
        assert (layer.calls, layer.units) == (1, 32)
        assert (layer.fan_in, layer.fan_out) == (x.shape[-1], 32)
        assert layer.factor == pytest.approx(x.shape[-1] * weight.var().item() / 2)
        assert layer.dead == (5 if layer.name == "k_proj" else 0)
        product *= layer.factor
        assert layer.product == pytest.approx(product)
        assert layer.backward is None
        assert layer.note == "no gradient, computed inside MultiheadAttention"
    assert_moments(w.layers[3].forward, out)
    assert w.layers[3].note == ""
    with watch(model, layers=["k_proj"]) as w:
        model(*inputs)
    assert [layer.name for layer in w.layers] == ["k_proj"]


def test_attention_in_half_precision_checkpointed_and_nested() -> None:
    model, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(4, 10, 32)
    with watch(model) as w, torch.autocast("cpu", torch.bfloat16):
        model(x, x, x)
        expected = nn.functional.linear(x, model.in_proj_weight[:32], model.in_proj_bias[:32])
    assert expected.dtype == torch.bfloat16
    assert_moments(w.layers[0].forward, expected)

    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    with watch(layer, gradients=True) as w:
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert [seen.calls for seen in w.layers] == [1] * 6

    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[1, 6:] = True
    encoder = nn.TransformerEncoder(layer, 1).eval()
    with watch(encoder) as w, torch.no_grad():
        encoder(x, src_key_padding_mask=mask)
    assert w.layers == []
    assert set(w.missing.values()) == {"its output is a nested tensor"}


def test_attention_whose_weight_is_computed_is_seen_by_its_output() -> None:
    model, x = nn.MultiheadAttention(32, 4), torch.randn(10, 4, 32)
    parametrizations.weight_norm(model, "in_proj_weight")
    parametrizations.weight_norm(model.out_proj)
    with watch(model, layers=nn.MultiheadAttention) as w:
        out = model(x, x, x)[0]
    (layer,) = w.layers
    assert_moments(layer.forward, out)
    assert layer.note == "its weight is computed"
    assert w.missing == {f"{n}_proj": "its weight is computed" for n in "qkv"}

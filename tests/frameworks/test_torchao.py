"""Block formats are torchao's, to the bit, and are written into its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from same_bits import bits

from fastinit import Blocks, Fill, Plan, init
from fastinit.stream import laws
from fastinit.stream.blocks import float8_scale_of

pytestmark = pytest.mark.frameworks
pytest.importorskip("torchao", reason="make frameworks")

ELEMENTS = {
    "mxfp8": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp4": torch.float4_e2m1fn_x2,
}
SHAPE = (48, 512)
STDS = (1.0, 0.02, 3e4, 1e-30, 1e30)
FUNCTIONS: dict[str, Any] = {
    "normal_": lambda std: {"std": std},
    "uniform_": lambda std: {"a": -std, "b": std},
    "trunc_normal_": lambda std: {"std": std, "a": -2 * std, "b": 2 * std},
}


def of_mx(wide: torch.Tensor, format: str) -> Any:
    """With the floor of the specification, section 6.3, which is torchao's default too."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    floor = ScaleCalculationMode.FLOOR
    return MXTensor.to_mx(wide, ELEMENTS[format], 32, scaling_mode=floor)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("format", ELEMENTS)
def test_mx(format: str, name: str, std: float) -> None:
    function, given = getattr(init, name), {"seed": 3, "name": "w", **FUNCTIONS[name](std)}
    theirs = of_mx(function(torch.empty(SHAPE), **given), format)
    ours = function(Blocks.empty(SHAPE, format), **given)
    assert bits(ours.data).equal(bits(theirs.qdata))
    assert bits(ours.scale).equal(bits(theirs.scale))
    assert ours.values().equal(theirs.dequantize(torch.float32))
    held = of_mx(torch.zeros(SHAPE), format)
    function(Blocks(held.qdata, held.scale, format), **given)
    assert held.dequantize(torch.float32).equal(ours.values())


@pytest.mark.parametrize("fixed", [None, 1.0, 1e-3])
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nvfp4(name: str, std: float, fixed: float | None) -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    function, given = getattr(init, name), {"seed": 3, "name": "w", **FUNCTIONS[name](std)}
    wide = function(torch.empty(SHAPE), **given)
    ours = function(Blocks.empty(SHAPE, "nvfp4", fixed_scale=fixed), **given)
    scales = [ours.tensor_scale, *([None] if fixed == 1.0 else [])]
    for scale in scales:
        theirs = NVFP4Tensor.to_nvfp4(wide, per_tensor_scale=scale)
        assert bits(ours.data).equal(bits(theirs.qdata))
        assert bits(ours.scale).equal(bits(theirs.scale))
        assert ours.values().equal(theirs.dequantize(torch.float32))


def wide(name: str = "weight") -> torch.Tensor:
    return init.normal_(torch.empty(SHAPE), std=0.02, seed=3, name=name)


def applied(held: Any) -> Any:
    """A linear layer's weight that a plan has written where it was."""
    layer = torch.nn.Linear(SHAPE[1], SHAPE[0])
    layer.weight = torch.nn.Parameter(held, requires_grad=False)
    plan = Plan({"weight": Fill.normal(std=0.02), "bias": Fill.constant(1.0)}, seed=3)
    plan.apply_(layer)
    assert layer.bias.eq(1.0).all()
    return layer.weight


@pytest.mark.parametrize("format", ELEMENTS)
def test_a_plan_writes_mx_parameters(format: str) -> None:
    held = applied(of_mx(torch.zeros(SHAPE), format))
    assert held.dequantize(torch.float32).equal(of_mx(wide(), format).dequantize(torch.float32))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_plan_writes_nvfp4_parameters(scaled: bool) -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    scale = torch.tensor(1.0) if scaled else None
    held = applied(NVFP4Tensor.to_nvfp4(torch.zeros(SHAPE), per_tensor_scale=scale))
    want = NVFP4Tensor.to_nvfp4(wide(), per_tensor_scale=held.per_tensor_scale)
    assert scaled == (held.per_tensor_scale is not None)
    assert held.dequantize(torch.float32).equal(want.dequantize(torch.float32))


@pytest.mark.parametrize("granularity", ["PerTensor", "PerRow"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_plan_writes_float8_parameters(granularity: str, dtype: torch.dtype) -> None:
    from torchao.quantization import Float8Tensor
    from torchao.quantization import granularity as kinds

    kind = getattr(kinds, granularity)()
    held = applied(Float8Tensor.from_hp(torch.zeros(SHAPE), float8_dtype=dtype, granularity=kind))
    scale = float8_scale_of(laws.normal(0.0, 0.02), dtype)
    assert held.scale.eq(scale).all()
    eight = init.normal_(
        torch.empty(SHAPE, dtype=dtype), std=0.02, seed=3, name="weight", scale=scale
    )
    assert held.dequantize().equal(eight.float() * scale)


def test_what_a_tensor_may_not_hold_is_refused_before_anything_is_written() -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    zeros, swizzled = torch.zeros(SHAPE[1], SHAPE[1]), "its scales are swizzled"
    turned = MXTensor.to_mx(zeros, torch.float4_e2m1fn_x2).t()
    for held, said in (
        (MXTensor.to_mx(zeros, torch.float8_e4m3fn, is_swizzled_scales=True), swizzled),
        (NVFP4Tensor.to_nvfp4(zeros, is_swizzled_scales=True), swizzled),
        (MXTensor.to_mx(zeros, torch.float8_e4m3fn, 64), "no format which fills write"),
        (turned, "weight"),
    ):
        layer = torch.nn.Linear(SHAPE[1], SHAPE[1])
        layer.weight = torch.nn.Parameter(held, requires_grad=False)
        bias = layer.bias.clone()
        plan = Plan({"bias": Fill.constant(1.0), "weight": Fill.normal(std=0.02)}, seed=3)
        with pytest.raises((NotImplementedError, ValueError), match=said):
            plan.apply_(layer)
        assert layer.bias.equal(bias)
        assert not held.dequantize(torch.float32).any()

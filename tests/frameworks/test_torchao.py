"""Block formats are torchao's, to the bit, and are written into its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from same_bits import bits

from fastinit import Blocks, init

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

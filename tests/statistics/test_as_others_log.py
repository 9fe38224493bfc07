"""What other projects log of a tensor, by their formulas, is what one call gives here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastinit.statistics.tensor import moments, moments_many

FLOAT32 = torch.finfo(torch.float32)


def activations(dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows with outliers, zeros, and blocks of nothing but zeros."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 12, 64, generator=generator) * 2.0 ** torch.arange(-24, 24).view(4, 12, 1)
    x[..., ::9] = 0
    x[0, 1, :32] = 0
    return x.to(dtype)


def e2m1_is_0(x: Tensor) -> Tensor:
    """Whether E2M1 rounds a value to 0: a tie is one, which 0.25 is."""
    return x.abs() <= 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_engines_tensor_stats(dtype: torch.dtype) -> None:
    x = activations(dtype)
    wide, m = x.double(), moments(x, higher=True)
    size = wide.abs()
    assert (m.min, m.max, m.absmax) == (wide.min(), wide.max(), size.max())
    assert m.dynamic_range == pytest.approx(
        (size.max().log2() - size[size > 0].min().log2()).item()
    )
    wanted = {"mean": wide.mean(), "std": wide.std(), "l1": size.sum(), "l2": wide.norm()}
    for field, value in wanted.items():
        # 16-bit values are summed in float32, 32 at once.
        assert getattr(m, field) == pytest.approx(value.item(), rel=1e-6), field


@pytest.mark.parametrize("block", [16, 32, 64])
def test_its_range_within_blocks_and_scales_of_these(block: int) -> None:
    x = activations()
    blocks = moments(x.reshape(-1, block), dim=0, higher=True)
    size = x.abs().reshape(-1, block)
    least = size.masked_fill(size == 0, math.inf).amin(1)
    ranges = torch.where(size.amax(1) > 0, size.amax(1).log2() - least.log2(), 0.0)
    assert blocks.dynamic_range.nan_to_num().max() == pytest.approx(ranges.max().item(), rel=1e-6)
    assert blocks.absmax.equal(size.amax(1).double())


def test_underflows_of_fp8_are_what_is_flushed() -> None:
    x = activations()
    codes = (x / (x.abs().max() / 448)).to(torch.float8_e4m3fn).view(torch.uint8)
    underflows = (x.count_nonzero() - (codes & 127).count_nonzero()) / x.numel()
    m = moments(x, formats=["e4m3_tensor"])
    assert underflows > 0.3
    assert m.formats["e4m3_tensor"].flushed == pytest.approx(underflows.item(), rel=1e-6)
    x[0, 2, :5] = math.inf  # which is no underflow, and in TransformerEngine's count of all
    more = moments(x, formats=["e4m3"])
    codes = x.to(torch.float8_e4m3fn).view(torch.uint8)
    underflows = (x.count_nonzero() - (codes & 127).count_nonzero()) / x.numel()
    share = more.formats["e4m3"].flushed * more.count / (more.count + more.nonfinite)
    assert share == pytest.approx(underflows.item(), rel=1e-6)


def test_mxfp8_differs_where_the_scale_is_rounded_up() -> None:
    """By a factor of 2, where the largest value is more than 1.75 times a power of two."""
    x = torch.full((2, 32), 1.9 * 2.0**-10)
    x[:, 0] = torch.tensor([1.75, 1.82]) * 2.0**8
    ours = torch.exp2(x[:, 0].log2().floor() - 8)
    theirs = torch.exp2((x[:, 0] / 448).log2().ceil())
    assert (theirs / ours).tolist() == [1, 2]
    first, second = (m.formats["mxfp8"] for m in moments_many(list(x), formats=["mxfp8"]))
    assert first.flushed == second.flushed == first.saturated == 0
    assert second.saturated == 1 / 32
    codes = (x[1] / theirs[1]).to(torch.float8_e4m3fn).float()
    assert codes.count_nonzero() == 1  # TransformerEngine's scale flushes the others


@pytest.mark.parametrize("exponent", [0, 8, 14, 16, 17, 18, 20, 24])
def test_nvfp4_flushes_what_transformer_engine_gives_back_as_0(exponent: int) -> None:
    """Also of blocks whose scale rounds to 0, though their codes are 6 (core_nvfp4.cuh)."""
    x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(exponent))
    x[1:] *= 2.0**-exponent
    x[0, 0] = 6.0
    blocks = x.view(-1, 16)
    encode = torch.clamp(448 * 6 / x.abs().max(), max=FLOAT32.max)
    scale = (blocks.abs().amax(1, keepdim=True) * (encode / 6)).clamp(max=448)
    scale = scale.to(torch.float8_e4m3fn).float()
    codes = (blocks * (1 / (scale * (1 / encode))).clamp(max=FLOAT32.max)).clamp(-6, 6)
    lost = (e2m1_is_0(codes) | (scale == 0)) & (blocks != 0)
    assert moments(x, formats=["nvfp4"]).formats["nvfp4"].flushed == lost.sum() / x.numel()
    assert (exponent >= 17) == bool((scale == 0).any())
    if exponent >= 18:
        assert not e2m1_is_0(codes[scale[:, 0] == 0]).any()


def test_megatrons_sums_of_powers() -> None:
    x = activations().double()
    whole = moments(x, higher=True)
    count, mean, m2, *_, m3, m4 = whole.raw.tolist()
    found = [
        mean * count,
        m2 + count * mean**2,
        m3 + 3 * mean * m2 + count * mean**3,
        m4 + 4 * mean * m3 + 6 * mean**2 * m2 + count * mean**4,
    ]
    for power, value in enumerate(found, 1):
        scale = x.abs().pow(power).sum().item()  # sums of odd powers cancel
        assert value == pytest.approx(x.pow(power).sum().item(), abs=1e-12 * scale), power


def test_composers_monitors() -> None:
    x = activations().double()
    rows = moments(x.flatten(0, -2), dim=0, higher=True)
    around = x - x.mean(-1, keepdim=True)
    kurtosis = around.pow(4).mean(-1) / around.pow(2).mean(-1) ** 2
    assert rows.kurtosis.mean() == pytest.approx(kurtosis.mean().item(), rel=1e-12)
    assert rows.l2.mean() == pytest.approx(x.norm(dim=-1).mean().item(), rel=1e-12)
    assert rows.max.mean() == pytest.approx(x.amax(-1).mean().item(), rel=1e-12)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    model(torch.randn(4, 8)).square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    first, *others = moments_many(gradients)
    norm = nn.utils.get_total_norm(gradients).item()
    assert first.merge(*others).l2 == pytest.approx(norm, rel=1e-6)  # torch's is float32

"""Parameters of other dtypes, complex ones, their bits, and contexts around a constructor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from . import Kind

bits, dtypes = Kind("complex and bits"), Kind("dtypes and contexts")


def linear(m: Any) -> nn.Parameter:
    m.layer = nn.Linear(8, 8)
    return m.layer.weight


# --- complex numbers and bits -------------------------------------------------------------------------


@bits.as_eager
def viewed_as_real(m: Any) -> None:
    m.w = nn.Parameter(torch.view_as_real(torch.randn(8, 8, dtype=torch.complex64)))
    m.scaled = nn.Parameter(torch.view_as_real(0.02 * torch.randn(8, 8, dtype=torch.cfloat)))


@bits.as_eager
def viewed_as_complex(m: Any) -> None:
    m.w = nn.Parameter(torch.randn(8, 8, 2))
    m.z = nn.Parameter(torch.view_as_complex(torch.randn(8, 8, 2)))
    m.register_buffer("seen", torch.view_as_complex(m.w.detach()))


@bits.as_eager
def complex_parameters(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8, dtype=torch.complex64))
    m.v = nn.Parameter(torch.zeros(4, dtype=torch.cfloat))
    with torch.no_grad():
        m.w.real.normal_(0, 0.5)
        m.w.imag.zero_()
        m.v.copy_(torch.polar(torch.ones(4), torch.arange(4.0)))


@bits.as_eager
def complex_draws(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(16, 16, dtype=torch.complex64))
    nn.init.normal_(m.w)
    m.sum = nn.Parameter(torch.complex(torch.randn(16, 16), torch.rand(16, 16)))


@bits.as_eager
def conjugates(m: Any) -> None:
    z = torch.randn(8, 8, dtype=torch.complex64)
    m.z, m.conj = nn.Parameter(z), nn.Parameter(z.conj().resolve_conj())
    m.turned = nn.Parameter(z.mH.clone())


@bits.as_eager
def a_state_space(m: Any) -> None:
    """As S4D: a complex diagonal, kept by its real parts."""
    c = torch.randn(8, 16, dtype=torch.cfloat)
    m.c = nn.Parameter(torch.view_as_real(c))
    a = -0.5 + 1j * math.pi * torch.arange(16)
    m.log_real, m.imag = nn.Parameter(torch.log(-a.real).repeat(8, 1)), nn.Parameter(a.imag)
    m.log_dt = nn.Parameter(torch.rand(8) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))


@bits.as_eager
def bits_as_integers(m: Any) -> None:
    w = linear(m)
    m.register_buffer("bits", w.detach().view(torch.int32))
    m.register_buffer("packed", torch.arange(8, dtype=torch.int32).view(torch.uint8))


@bits.as_eager
def integers(m: Any) -> None:
    w = linear(m)
    m.q = nn.Parameter((w.detach() * 127).round().to(torch.int8), requires_grad=False)
    m.on = nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False)


# --- dtypes and contexts ------------------------------------------------------------------------------


def _with_default(dtype: torch.dtype, m: Any) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        linear(m)
        m.w = nn.Parameter(torch.randn(16, 16))
        m.register_buffer("positions", torch.linspace(0, 1, 5))
    finally:
        torch.set_default_dtype(before)


@dtypes.as_eager
def double_by_default(m: Any) -> None:
    _with_default(torch.float64, m)


@dtypes.as_eager
def half_by_default(m: Any) -> None:
    _with_default(torch.float16, m)


@dtypes.as_eager
def bfloat16_by_default(m: Any) -> None:
    _with_default(torch.bfloat16, m)


@dtypes.as_eager
def converted(m: Any) -> None:
    linear(m)
    m.short, m.long = nn.Linear(16, 16).half(), nn.Linear(8, 8).double()
    m.norm = nn.BatchNorm1d(4).to(torch.bfloat16)
    m.master = nn.Parameter(m.short.weight.detach().float())


@dtypes.as_eager
def one_of_them_converted(m: Any) -> None:
    w = linear(m)
    w.data = w.data.bfloat16()
    m.layer.bias = nn.Parameter(m.layer.bias.to(torch.float64))


@dtypes.as_eager
def channels_last(m: Any) -> None:
    m.conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    m.w = nn.Parameter(torch.empty(2, 3, 4, 5, memory_format=torch.channels_last).normal_())


@dtypes.as_eager
def other_memory(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 16).t())
    m.strided = nn.Parameter(torch.empty_strided((4, 6), (1, 4)))
    nn.init.kaiming_normal_(m.w)
    nn.init.uniform_(m.strided)


@dtypes.as_eager
def under_no_grad(m: Any) -> None:
    with torch.no_grad():
        w = linear(m)
        w.copy_(w * 2)


@dtypes.as_eager
def under_inference_mode(m: Any) -> None:
    with torch.inference_mode():
        linear(m)
        m.register_buffer("positions", torch.arange(4.0))


@dtypes.as_eager
def under_a_device(m: Any) -> None:
    with torch.device("cpu"):
        linear(m)
        m.w = nn.Parameter(torch.randn(16, 16))


@dtypes.refused(word="autocast")
def under_autocast(m: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = linear(m)
        m.register_buffer("product", w.detach() @ torch.eye(8))

"""Factorisations and what else is computed from values, and where its numbers lie in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import Kind

algebra = Kind("algebra", strides=False)  # kernels without values say others
inverse, qr = torch.linalg.inv, torch.linalg.qr


def linear(m: Any, n: int = 16, k: int = 8) -> nn.Parameter:
    m.layer = nn.Linear(k, n)
    return m.layer.weight


@algebra.as_eager
def svd_whose_product_is_orthogonal(m: Any) -> None:
    w = linear(m)
    u, _, v = torch.linalg.svd(w.data, full_matrices=False)
    w.data = u @ v


@algebra.as_eager
def svd_of_a_wide_matrix(m: Any) -> None:
    w = linear(m, 8, 16)
    u, _, v = torch.linalg.svd(w.data, full_matrices=False)
    w.data.copy_(u @ v)


@algebra.as_eager
def svd_of_a_transpose(m: Any) -> None:
    w = linear(m)
    u, _, v = torch.linalg.svd(w.data.T, full_matrices=False)
    w.data = (u @ v).T


@algebra.as_eager
def old_svd(m: Any) -> None:
    w = linear(m)
    u, s, v = torch.svd(w.data)
    w.data = u @ v.t()
    m.s = nn.Parameter(s)


@algebra.as_eager
def svd_of_experts(m: Any) -> None:
    m.w = nn.Parameter(torch.randn(3, 8, 8))
    u, s, v = torch.linalg.svd(m.w.data)
    m.u, m.s, m.v = nn.Parameter(u), nn.Parameter(s), nn.Parameter(v)


@algebra.as_eager
def svd_in_double_precision(m: Any) -> None:
    w = linear(m)
    u, _, v = torch.linalg.svd(w.data.double(), full_matrices=False)
    w.data = (u @ v).float()


@algebra.as_eager
def svd_of_kernels(m: Any) -> None:
    m.conv = nn.Conv2d(4, 16, 2)
    w = m.conv.weight
    u, _, v = torch.linalg.svd(w.data.flatten(1), full_matrices=False)
    w.data = (u @ v).view_as(w)


@algebra.as_eager
def principal_components_and_the_rest(m: Any) -> None:
    """As PiSSA: base + B @ A is what the weight was."""
    w = linear(m, 16, 16)
    m.was = w.detach().clone()
    u, s, v = torch.linalg.svd(w.data, full_matrices=False)
    root = s[:4].sqrt()
    m.a = nn.Parameter(root[:, None] * v[:4])
    m.b = nn.Parameter(u[:, :4] * root)
    w.data = w.data - m.b.data @ m.a.data
    m.sum = w.data + m.b.data @ m.a.data


@algebra.as_eager
def principal_components_by_a_diagonal(m: Any) -> None:
    w = linear(m, 16, 16)
    v, s, uh = torch.linalg.svd(w.data.to(torch.float32), full_matrices=False)
    vr, sr, uhr = v[:, :4], s[:4] / 2, uh[:4]
    m.a = nn.Linear(16, 4, bias=False)
    m.b = nn.Linear(4, 16, bias=False)
    m.a.weight.data = torch.diag(torch.sqrt(sr)) @ uhr
    m.b.weight.data = vr @ torch.diag(torch.sqrt(sr))
    w.data = (w.data - 2 * m.b.weight @ m.a.weight).to(w.dtype)


@algebra.as_eager
def qr_of_data(m: Any) -> None:
    w = linear(m)
    w.data = qr(w.data)[0]


@algebra.as_eager
def qr_with_signs(m: Any) -> None:
    w = linear(m, 8, 8)
    q, r = qr(torch.randn(8, 8))
    q *= torch.diag(r).sign()
    with torch.no_grad():
        w.copy_(q)


@algebra.as_eager
def qr_of_the_base_and_the_rest(m: Any) -> None:
    """As OLoRA."""
    w = linear(m, 16, 16)
    q, r = qr(w.data)
    m.b, m.a = nn.Parameter(q[:, :4].contiguous()), nn.Parameter(r[:4].contiguous())
    w.data = w.data - m.b.data @ m.a.data


@algebra.as_eager
def eigenvectors(m: Any) -> None:
    w = linear(m, 8, 8)
    values, vectors = torch.linalg.eigh(w.data @ w.data.T)
    w.data, m.values = vectors, nn.Parameter(values)


@algebra.as_eager
def cholesky(m: Any) -> None:
    w = linear(m, 8, 8)
    w.data = torch.linalg.cholesky(w.data @ w.data.T + torch.eye(8))


@algebra.as_eager
def least_squares(m: Any) -> None:
    w = linear(m)
    m.x = nn.Parameter(torch.linalg.lstsq(w.data, torch.eye(16)).solution)


@algebra.as_eager
def inverses(m: Any) -> None:
    w = linear(m, 8, 8)
    m.register_buffer("inverse", inverse(w.data + 2 * torch.eye(8)))
    m.register_buffer("pseudo", torch.linalg.pinv(w.data))
    m.solution = nn.Parameter(torch.linalg.solve(w.data + 2 * torch.eye(8), torch.ones(8, 2)))


@algebra.as_eager
def exponential_of_a_skew_matrix(m: Any) -> None:
    w = linear(m, 8, 8)
    w.data = torch.matrix_exp(w.data - w.data.T)


@algebra.as_eager
def random_svd(m: Any) -> None:
    w = linear(m, 16, 16)
    m.u, m.s, m.v = (nn.Parameter(x) for x in torch.svd_lowrank(w.data, q=4, niter=2))


@algebra.as_eager
def invertible_convolution(m: Any) -> None:
    """As Glow: P L (U + diag(s)) is orthogonal."""
    w = qr(torch.randn(8, 8))[0]
    p, low, up = torch.linalg.lu(w)
    s = torch.diag(up)
    m.register_buffer("p", p)
    m.register_buffer("sign", torch.sign(s))
    m.low, m.log_s = nn.Parameter(low), nn.Parameter(torch.log(torch.abs(s)))
    m.up = nn.Parameter(torch.triu(up, 1))
    m.register_buffer("product", p @ low @ up)


@algebra.as_eager
def channels_last(m: Any) -> None:
    m.conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    w = m.conv.weight
    w.data = w.data - w.data.mean((1, 2, 3), keepdim=True)


@algebra.as_eager
def channels_last_and_flat(m: Any) -> None:
    m.conv = nn.Conv2d(4, 36, 3).to(memory_format=torch.channels_last)
    w = m.conv.weight
    u, _, v = torch.linalg.svd(w.data.reshape(36, -1), full_matrices=False)
    w.data = (u @ v).reshape(w.shape)


@algebra.as_eager
def rows_of_one_norm(m: Any) -> None:
    w = linear(m)
    w.data /= w.data.norm(dim=1, keepdim=True)
    m.other = nn.Parameter(F.normalize(torch.randn(8, 16), dim=0))


@algebra.as_eager
def standardised(m: Any) -> None:
    w = linear(m)
    with torch.no_grad():
        std, mean = torch.std_mean(w, dim=1, keepdim=True)
        w.sub_(mean).div_(std)


@algebra.as_eager
def sorted_and_largest(m: Any) -> None:
    w = linear(m)
    values, order = w.data.sort(dim=1)
    m.register_buffer("order", order)
    w.data = values
    m.top = nn.Parameter(torch.randn(8, 16).topk(3).values)


@algebra.as_eager
def small_ones_are_zeroed(m: Any) -> None:
    w = linear(m, 16, 16)
    limit = w.data.abs().flatten().kthvalue(128).values
    w.data[w.data.abs() <= limit] = 0


@algebra.as_eager
def fourier(m: Any) -> None:
    w = linear(m, 8, 8)
    m.spectrum = nn.Parameter(torch.fft.fft2(w.data))
    w.data = torch.fft.ifft2(m.spectrum.data).real


@algebra.as_eager
def products_of_many(m: Any) -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 2)
    m.kron = nn.Parameter(torch.kron(a, b))
    m.sums = nn.Parameter(torch.einsum("ij,kl->ilkj", a, b))
    m.blocks = nn.Parameter(torch.block_diag(a, b))
    m.lower = nn.Parameter(torch.tril(torch.randn(8, 8)))


@algebra.as_eager
def views_of_what_was_computed(m: Any) -> None:
    w = linear(m, 16, 16)
    u, _, v = torch.linalg.svd(w.data)
    m.columns, m.rows = nn.Parameter(u[:, 4:8]), nn.Parameter(v.T[::2])
    m.turned = nn.Parameter((w.data @ w.data.T).T.contiguous())


@algebra.as_eager
def permuted_memory(m: Any) -> None:
    x = torch.randn(4, 6, 8).permute(2, 0, 1)
    m.doubled = nn.Parameter(x * 2)
    m.exp = nn.Parameter(x.exp())
    m.sum = nn.Parameter(x + torch.arange(6.0))
    m.product = nn.Parameter(x @ torch.randn(6, 6))

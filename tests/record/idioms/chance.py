"""Random tensors that are no parameters, alone and beside parameters that have their numbers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from . import Kind

buffers, masks, order = Kind("random buffers"), Kind("masks"), Kind("shuffled")
generators = Kind("generators")


def linear(m: Any, n: int = 16) -> nn.Parameter:
    m.layer = nn.Linear(16, n)
    return m.layer.weight


# --- buffers ------------------------------------------------------------------------------------------


@buffers.as_eager
def of_each_factory(m: Any) -> None:
    m.register_buffer("normal", torch.randn(16, 16))
    m.register_buffer("uniform", torch.rand(16, 16))
    m.register_buffer("integers", torch.randint(0, 1000, (64,)))
    m.register_buffer("shuffled", torch.randperm(64))
    m.register_buffer("short", torch.randn(32, 32, dtype=torch.bfloat16))
    m.register_buffer("complex", torch.randn(16, 16, dtype=torch.complex64))
    m.new = nn.Buffer(torch.randn(8, 8, dtype=torch.float64), persistent=False)


@buffers.as_eager
def of_each_way_to_draw(m: Any) -> None:
    p = torch.full((16, 16), 0.3)
    m.register_buffer("bernoulli", torch.bernoulli(p))
    m.register_buffer("poisson", torch.poisson(p * 10))
    m.register_buffer("normal", torch.normal(p, 2 * p))
    m.register_buffer("picked", torch.multinomial(torch.ones(16, 64), 8))
    m.register_buffer("filled", torch.empty(16, 16).exponential_(2.0))
    m.register_buffer("gumbel", -torch.log(-torch.log(torch.rand(16, 16).clamp(1e-6, 1 - 1e-6))))
    m.register_buffer("signs", 2.0 * torch.randint(0, 2, (256,)) - 1)


@buffers.as_eager
def beside_a_parameter_of_the_same_numbers(m: Any) -> None:
    """As Fourier features do."""
    b = torch.randn(8, 16) * 10
    m.register_buffer("b", b)
    m.w = nn.Parameter(b.clone())
    m.frozen = nn.Parameter(b * 2, requires_grad=False)


@buffers.as_eager
def a_code_book(m: Any) -> None:
    embed = torch.empty(16, 8).uniform_(-1 / 16, 1 / 16)
    m.register_buffer("embed", embed)
    m.register_buffer("embed_avg", embed.clone())
    m.register_buffer("cluster_size", torch.zeros(16))


@buffers.as_eager
def a_projection_of_orthogonal_blocks(m: Any) -> None:
    """As Performer's random features."""
    blocks = [torch.linalg.qr(torch.randn(8, 8))[0].T for _ in range(2)]
    norms = torch.randn(16, 8).norm(dim=1)
    m.register_buffer("projection", torch.diag(norms) @ torch.cat(blocks))
    m.register_buffer("directions", F.normalize(torch.randn(16, 8), dim=-1))


@buffers.as_eager
def plain_attributes(m: Any) -> None:
    m.noise = torch.randn(16, 16)
    m.listed, m.named = [torch.randn(16)], {"key": (torch.rand(16), 0)}


@buffers.as_eager
def copies_of_random_tensors(m: Any) -> None:
    x = torch.randn(8, 8)
    m.register_buffer("x", x)
    m.y, m.z = copy.deepcopy(x), x.clone()
    m.w = nn.Parameter(copy.deepcopy(x))


@buffers.as_eager
def overwritten_by_constants(m: Any) -> None:
    m.register_buffer("x", torch.randn(8, 8).zero_())
    m.register_buffer("y", torch.randn(8, 8))
    m.y[:4] = 1.0


@buffers.as_eager
def drawn_after_they_are_registered(m: Any) -> None:
    m.register_buffer("x", torch.zeros(16, 16))
    m.register_buffer("rows", torch.ones(4, 16))
    m.x.normal_(0, 0.1)
    m.rows.data[1:3].uniform_(-1, 1)


@buffers.as_eager
def of_a_parameter_that_is_drawn_again(m: Any) -> None:
    w = linear(m)
    m.register_buffer("first", w.detach().clone())
    nn.init.normal_(w)
    m.register_buffer("second", w.detach().clone())


@buffers.as_eager
def like_a_parameter(m: Any) -> None:
    w = linear(m)
    m.register_buffer("noise", torch.randn_like(w))
    m.register_buffer("more", torch.rand_like(w.data) + w.data)


@buffers.as_eager
def numbers_that_are_read(m: Any) -> None:
    m.scale = torch.rand(1).item()
    m.sizes = torch.randint(0, 10**6, (3,)).tolist()


@buffers.as_eager
def a_number_that_decides(m: Any) -> None:
    if torch.rand(()) < 2.0:
        m.w = nn.Parameter(torch.ones(3))


@buffers.as_eager
def of_numpy_and_python(m: Any) -> None:
    m.register_buffer("x", torch.from_numpy(np.random.randn(8, 8)))
    m.w = nn.Parameter(torch.tensor(np.random.rand(4, 4), dtype=torch.float32))


@buffers.as_eager
def power_iterations(m: Any) -> None:
    m.old = nn.utils.spectral_norm(nn.Linear(8, 16))
    m.new = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16))


@buffers.as_eager
def one_number_for_all(m: Any) -> None:
    m.w = nn.Parameter(torch.randn(1) * torch.ones(16, 16))
    m.register_buffer("x", torch.rand(()).expand(4, 4).clone())


# --- masks --------------------------------------------------------------------------------------------


@masks.as_eager
def a_mask_and_what_it_masks(m: Any) -> None:
    w = linear(m)
    m.register_buffer("mask", (torch.rand(16, 16) < 0.5).float())
    w.data *= m.mask


@masks.as_eager
def a_mask_of_bools(m: Any) -> None:
    w = linear(m)
    m.register_buffer("mask", torch.rand_like(w) < 0.3)
    w.data[m.mask] = 0


@masks.as_eager
def a_mask_of_where_it_is_zero(m: Any) -> None:
    w = linear(m)
    nn.init.sparse_(w, 0.5)
    m.register_buffer("mask", w.detach() != 0)


@masks.as_eager
def dropout_of_data(m: Any) -> None:
    w = linear(m)
    w.data = F.dropout(w.data, 0.4)
    m.register_buffer("kept", (w.data != 0).float())


@masks.as_eager
def dropout_of_a_mask(m: Any) -> None:
    w = linear(m)
    mask = F.dropout(torch.ones(16, 16), 0.5, training=True) / 2
    m.register_buffer("mask", mask)
    m.w = nn.Parameter(w.detach() * mask)


@masks.as_eager
def pruned_at_random(m: Any) -> None:
    linear(m)
    prune.random_unstructured(m.layer, "weight", 0.3)


@masks.as_eager
def pruned_by_size(m: Any) -> None:
    linear(m)
    prune.l1_unstructured(m.layer, "weight", 0.5)
    prune.remove(m.layer, "weight")


@masks.as_eager
def random_masks_by_rows(m: Any) -> None:
    w = linear(m)
    mask = torch.zeros(16, 16)
    for i in range(16):
        mask[i, torch.randperm(16)[:4]] = 1.0
    m.register_buffer("mask", mask)
    with torch.no_grad():
        w.mul_(m.mask)


# --- orders -------------------------------------------------------------------------------------------


@order.as_eager
def rows_and_the_way_back(m: Any) -> None:
    w = linear(m)
    m.was = w.detach().clone()
    m.register_buffer("order", torch.randperm(16))
    m.register_buffer("back", torch.argsort(m.order))
    w.data = w.data[m.order]
    m.again = w.data[m.back]


@order.as_eager
def a_constant(m: Any) -> None:
    m.register_buffer("positions", torch.arange(100.0)[torch.randperm(100)])
    m.degrees = nn.Parameter((torch.arange(64) % 7)[torch.randperm(64)].float())


@order.as_eager
def a_random_sample(m: Any) -> None:
    table = torch.randn(64, 8)
    m.register_buffer("index", torch.randint(0, 64, (16,)))
    m.register_buffer("sample", table[m.index])
    m.table = nn.Parameter(table)


@order.as_eager
def masks_of_degrees(m: Any) -> None:
    """As MADE: which weights there are follows from random degrees."""
    first = torch.randint(1, 16, (16,))
    second = torch.randint(1, 16, (32,))
    m.layer = nn.Linear(16, 32)
    m.register_buffer("mask", (second[:, None] >= first[None]).float())
    m.layer.weight.data.mul_(m.mask)


# --- generators: who gives one asks for its numbers ---------------------------------------------------


@generators.as_eager
def given_to_a_parameter(m: Any) -> None:
    nn.init.normal_(linear(m), generator=torch.Generator().manual_seed(1))


@generators.as_eager
def given_to_a_method(m: Any) -> None:
    linear(m).data.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))


@generators.as_eager
def given_to_a_factory(m: Any) -> None:
    m.w = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))


@generators.as_eager
def seeded_in_the_constructor(m: Any) -> None:
    torch.manual_seed(0)
    a = nn.Linear(8, 8)
    torch.manual_seed(0)
    m.a, m.b = a, nn.Linear(8, 8)


@generators.as_eager
def kept(m: Any) -> None:
    m.generator = torch.Generator().manual_seed(5)

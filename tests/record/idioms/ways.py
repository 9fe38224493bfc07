"""Ways to make, write and keep parameters: factories, constants, orders of writes, forward passes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastinit import lsuv_

from . import Kind

factories = Kind("factories")
constants, writes, life = Kind("constants read back"), Kind("order of writes"), Kind("life")
forward = Kind("forward passes")


def linear(m: Any, n: int = 8) -> nn.Parameter:
    m.layer = nn.Linear(8, n)
    return m.layer.weight


# --- factories ----------------------------------------------------------------------------------------


@factories.as_eager
def of_constants(m: Any) -> None:
    x = torch.empty(8)
    torch.arange(8.0, out=x)
    m.register_buffer("positions", x)
    m.zeros, m.ones = torch.zeros(3, out=torch.empty(3)), torch.ones(3, out=torch.empty(3))
    m.line = nn.Parameter(torch.linspace(0, 1, 8, out=torch.empty(8)))
    m.full = nn.Parameter(torch.full((3,), 0.5, out=torch.empty(3)))
    m.eye = nn.Parameter(torch.eye(4, out=torch.empty(4, 4)))


@factories.as_eager
def of_a_parameter(m: Any) -> None:
    m.w, m.v = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(16, 16))
    torch.arange(8.0, out=m.w.data)
    torch.randn(16, 16, out=m.v.data)


@factories.as_eager
def of_parameters_that_are_computed(m: Any) -> None:
    w = linear(m)
    with torch.no_grad():
        torch.mul(w, 3.0, out=m.layer.weight)
        torch.add(m.layer.bias, 1.0, out=m.layer.bias)
        m.product = nn.Parameter(torch.mm(w, w, out=torch.empty(8, 8)))


@factories.as_eager
def of_random_ones(m: Any) -> None:
    m.w = nn.Parameter(torch.rand(16, 16, out=torch.empty(16, 16)))
    m.v = nn.Parameter(torch.normal(0.0, 2.0, (16, 16), out=torch.empty(16, 16)))


@factories.as_eager
def normal_of_tensors(m: Any) -> None:
    std = torch.full((16, 16), 0.1)
    m.a = nn.Parameter(torch.normal(torch.zeros(16, 16), std))
    m.b = nn.Parameter(torch.normal(1.0, std))
    m.c = nn.Parameter(torch.normal(torch.ones(16, 16), 0.5))
    m.d = nn.Parameter(torch.normal(mean=torch.zeros(256), std=torch.arange(256.0)))


@factories.as_eager
def constants_of_each_factory(m: Any) -> None:
    m.line, m.log = nn.Parameter(torch.linspace(1, 2, 8)), nn.Parameter(torch.logspace(0, 1, 8))
    m.eye, m.full = nn.Parameter(torch.eye(4, 6)), nn.Parameter(torch.full((2, 2), math.pi))
    m.hann = nn.Parameter(torch.hann_window(8))
    m.a_log = nn.Parameter(torch.log(torch.arange(1, 9).float()).repeat(4, 1))


@factories.as_eager
def old_constructors(m: Any) -> None:
    m.a = nn.Parameter(torch.Tensor(8, 8))
    m.b = nn.Parameter(torch.FloatTensor(8, 8).normal_(0, 0.1))
    m.c = nn.Parameter(torch.Tensor([1.0, 2.0]))
    nn.init.xavier_normal_(m.a)


# --- constants that are read back ---------------------------------------------------------------------


@constants.as_eager
def as_numbers(m: Any) -> None:
    m.scale = nn.Parameter(torch.ones(1) * 0.5)
    nn.init.constant_(m.scale, 0.25)
    m.value, m.inverse = m.scale.item(), 1.0 / float(m.scale)
    m.listed = m.scale.tolist()


@constants.as_eager
def in_conditions(m: Any) -> None:
    w = nn.init.zeros_(linear(m))
    if w.abs().max() == 0 and not w.any() and torch.all(w == 0):
        nn.init.ones_(m.layer.bias)


@constants.as_eager
def compared(m: Any) -> None:
    w = nn.init.eye_(linear(m))
    m.checks = [torch.equal(w, torch.eye(8)), torch.allclose(w @ w.T, torch.eye(8))]
    assert not torch.isnan(w).any()


@constants.as_eager
def of_a_norm(m: Any) -> None:
    m.norm = nn.LayerNorm(8)
    m.total, m.count = float(m.norm.weight.sum()), int((m.norm.bias == 0).sum())


@constants.as_eager
def as_arrays(m: Any) -> None:
    w = nn.init.constant_(linear(m), 3.0)
    m.array = w.detach().numpy().copy()


@constants.as_eager
def loops(m: Any) -> None:
    w = nn.init.ones_(linear(m))
    with torch.no_grad():
        while w.abs().max() > 0.3:
            w.mul_(0.5)


@constants.as_eager
def of_given_values(m: Any) -> None:
    m.sizes = nn.Parameter(torch.tensor([2.0, 3.0]))
    for i, size in enumerate(m.sizes):
        m.register_buffer(f"b{i}", torch.zeros(int(size)))


# --- in which order -----------------------------------------------------------------------------------


@writes.as_eager
def copies_before_and_after(m: Any) -> None:
    w = linear(m)
    m.before = nn.Parameter(w.detach().clone())
    nn.init.normal_(w, std=0.1)
    m.after = nn.Parameter(w.detach().clone())
    m.third = copy.deepcopy(m.layer)


@writes.as_eager
def read_before_a_second_draw(m: Any) -> None:
    w = linear(m)
    nn.init.normal_(w)
    m.a = nn.Parameter(w.detach() * 2)
    nn.init.normal_(w)
    m.b = nn.Parameter(w.detach() + m.a.detach())


@writes.as_eager
def reset_again(m: Any) -> None:
    linear(m)
    m.norm, m.conv = nn.BatchNorm1d(8), nn.Conv1d(4, 4, 3)
    m.apply(lambda x: x.reset_parameters() if hasattr(x, "reset_parameters") else None)


@writes.as_eager
def residual_scaling(m: Any) -> None:
    m.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
    for depth, layer in enumerate(m.layers, 1):
        nn.init.normal_(layer.weight, std=0.02)
        layer.weight.data.div_(math.sqrt(2.0 * depth))


@writes.as_eager
def one_source_for_two(m: Any) -> None:
    x = torch.empty(16, 16).uniform_(-1, 1)
    m.a, m.b = nn.Parameter(x.clone()), nn.Parameter(x.T.clone())
    x.mul_(2)
    m.c = nn.Parameter(x)


@writes.as_eager
def fused_from_parts(m: Any) -> None:
    m.q, m.k = nn.Linear(8, 8), nn.Linear(8, 8)
    m.qk = nn.Parameter(torch.cat([m.q.weight.data, m.k.weight.data]))
    m.rows = nn.Parameter(torch.empty(16, 8))
    m.rows.data[:8].copy_(m.k.weight)
    m.rows.data[8:] = m.q.weight.data * 2


@writes.as_eager
def arithmetic_in_place(m: Any) -> None:
    w = linear(m, 32)
    with torch.no_grad():
        w += 1.0
        w.addcmul_(w, torch.ones_like(w), value=0.5)
        w.lerp_(torch.zeros(32, 8), 0.25).triu_()
        w.addmm_(torch.ones(32, 4), torch.ones(4, 8), alpha=0.1)
        w[:, 0] = w[:, 1]


@writes.as_eager
def a_padding_row(m: Any) -> None:
    m.embedding = nn.Embedding(16, 8, padding_idx=3)
    nn.init.normal_(m.embedding.weight, std=0.02)
    m.embedding._fill_padding_idx_with_zero()


@writes.as_eager
def several_at_once(m: Any) -> None:
    linear(m)
    m.b = nn.Parameter(torch.randn(8))
    with torch.no_grad():
        torch._foreach_mul_(list(m.parameters()), 0.5)
        nn.utils.clip_grad_norm_(m.parameters(), 1.0)


@writes.as_eager
def averages_of_two(m: Any) -> None:
    m.student, m.teacher = nn.Linear(16, 16), nn.Linear(16, 16)
    for s, t in zip(m.student.parameters(), m.teacher.parameters()):
        t.data = t.data * 0.9 + s.data * 0.1
        t.requires_grad = False


# --- the life of a parameter --------------------------------------------------------------------------


@life.as_eager
def frozen(m: Any) -> None:
    linear(m).requires_grad_(False)
    m.other = nn.Linear(4, 4).requires_grad_(False)
    m.w = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    m.w.requires_grad = True


@life.as_eager
def registered_later(m: Any) -> None:
    m.register_parameter("w", None)
    m.register_parameter("bias", None)
    w = nn.Parameter(torch.empty(8, 8))
    nn.init.xavier_uniform_(w)
    m.w = w


@life.as_eager
def written_after_it_is_registered_elsewhere(m: Any) -> None:
    w = nn.Parameter(torch.empty(8, 8))
    m.a = nn.Module()
    m.a.register_parameter("weight", w)
    nn.init.orthogonal_(w)
    m.b = nn.Module()
    m.b.register_parameter("weight", w)


@life.as_eager
def replaced_and_deleted(m: Any) -> None:
    linear(m)
    m.layer.weight = nn.Parameter(m.layer.weight.data * 2)
    del m.layer.bias
    m.layer.bias = None
    m.gone = nn.Linear(4, 4)
    del m.gone


@life.as_eager
def made_a_buffer(m: Any) -> None:
    w = linear(m).data
    del m.layer.weight
    m.layer.register_buffer("weight", w)


@life.as_eager
def made_a_plain_attribute(m: Any) -> None:
    w = linear(m)
    m.plain, m.product = w.data.clone(), w.detach() @ w.detach()


@life.as_eager
def computed_with_gradients(m: Any) -> None:
    w = linear(m)
    m.kept = w * 2


@life.as_eager
def layers_of_a_config(m: Any) -> None:
    m.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))
    m.attention, m.gru = nn.MultiheadAttention(8, 2), nn.GRUCell(8, 8)
    m.bilinear, m.bag = nn.Bilinear(4, 4, 4), nn.EmbeddingBag(10, 4)


# --- forward passes in a constructor ------------------------------------------------------------------


@forward.as_eager
def for_a_shape(m: Any) -> None:
    m.conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        size = m.conv(torch.zeros(1, 3, 12, 12)).flatten(1).shape[1]
    m.head = nn.Linear(size, 4)


@forward.as_eager
def for_a_shape_with_random_inputs(m: Any) -> None:
    m.conv = nn.Conv1d(3, 8, 3)
    m.head = nn.Linear(m.conv(torch.rand(1, 3, 12)).numel(), 4)


@forward.as_eager
def through_a_norm_that_counts(m: Any) -> None:
    m.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    m.net(torch.ones(4, 8) * torch.arange(4.0)[:, None])


@forward.as_eager
def whose_result_is_kept(m: Any) -> None:
    w = linear(m)
    m.register_buffer("prototype", F.normalize(m.layer(torch.ones(2, 8)).detach(), dim=1))
    m.gram = w.detach() @ w.detach().T


@forward.as_eager
def by_lsuv(m: Any) -> None:
    m.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    x = torch.sin(torch.arange(64.0 * 16)).view(64, 16)
    lsuv_(m.net, x)
    m.other = nn.Linear(8, 8)
    nn.init.trunc_normal_(m.other.weight, std=0.02)


@forward.as_eager
def lazily(m: Any) -> None:
    m.lazy = nn.LazyLinear(8)
    m.lazy(torch.zeros(2, 16))


transforms = Kind("functions are transformed")


@transforms.as_eager
def over_parts(m: Any) -> None:
    m.random = nn.Parameter(torch.vmap(lambda x: x * 2.0)(torch.randn(3, 4)))
    m.rows = nn.Parameter(torch.vmap(lambda x: x / x.norm())(linear(m).detach()))


@transforms.as_eager
def over_models(m: Any) -> None:
    m.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    stacked, _ = torch.func.stack_module_state(list(m.layers))
    run = torch.vmap(lambda p, x: torch.func.functional_call(m.layers[0], p, (x,)), (0, None))
    m.register_buffer("out", run(stacked, torch.ones(2, 4)).detach())


@transforms.refused(word="grad|reads a tensor")
def gradients(m: Any) -> None:
    m.gradient = torch.func.grad(lambda w: (w**2).sum())(linear(m).detach())

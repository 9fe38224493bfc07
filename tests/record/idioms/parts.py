"""Draws on parts of one parameter: each has its own numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Kind

parts = Kind("parts")


def experts(m: Any, *shape: int) -> Tensor:
    m.w = nn.Parameter(torch.empty(shape or (4, 8, 8)))
    return m.w


@parts.as_eager
def orthogonal_experts(m: Any) -> None:
    for x in experts(m):
        nn.init.orthogonal_(x)


@parts.as_eager
def orthogonal_experts_from_the_last(m: Any) -> None:
    for x in reversed(list(experts(m))):
        nn.init.orthogonal_(x)


@parts.as_eager
def orthogonal_gates(m: Any) -> None:
    m.lstm = nn.LSTM(8, 8)
    for gate in m.lstm.weight_hh_l0.chunk(4):
        nn.init.orthogonal_(gate)


@parts.as_eager
def orthogonal_gates_of_data_by_slices(m: Any) -> None:
    m.gru = nn.GRU(8, 8, num_layers=2)
    for name, p in m.gru.named_parameters():
        if "weight_hh" in name:
            for k in range(0, 24, 8):
                nn.init.orthogonal_(p.data[k : k + 8])


@parts.as_eager
def sparse_experts(m: Any) -> None:
    for x in experts(m, 3, 16, 16):
        nn.init.sparse_(x, 0.5)


@parts.as_eager
def bernoulli_experts(m: Any) -> None:
    for x in experts(m, 3, 8, 8):
        x.data.bernoulli_(0.5)


@parts.as_eager
def dirac_groups(m: Any) -> None:
    for x in experts(m, 8, 4, 3).chunk(2):
        nn.init.dirac_(x)


@parts.as_eager
def eye_experts(m: Any) -> None:
    for x in experts(m):
        nn.init.eye_(x)


@parts.as_eager
def orthogonal_on_rows_of_the_transpose(m: Any) -> None:
    for x in experts(m, 8, 32).T.split(8):
        nn.init.orthogonal_(x)


@parts.as_eager
def orthogonal_kernels_on_a_transposed_view(m: Any) -> None:
    m.conv = nn.ConvTranspose2d(4, 8, 3)
    for x in m.conv.weight.transpose(0, 1):
        nn.init.orthogonal_(x)


@parts.as_eager
def normal_experts(m: Any) -> None:
    for x in experts(m):
        nn.init.normal_(x, std=0.1)


@parts.as_eager
def kaiming_experts_from_the_last(m: Any) -> None:
    for x in reversed(experts(m).unbind()):
        nn.init.kaiming_uniform_(x)


@parts.as_eager
def truncated_columns(m: Any) -> None:
    w = experts(m, 16, 16)
    for i in range(16):
        nn.init.trunc_normal_(w[:, i], std=0.02)


@parts.as_eager
def exponential_experts(m: Any) -> None:
    for x in experts(m, 3, 8, 8):
        x.data.exponential_()


@parts.as_eager
def experts_of_each_other_law(m: Any) -> None:
    with torch.no_grad():
        for x in experts(m, 2, 16, 16):
            x[0].log_normal_()
            x[1].cauchy_()
            x[2].geometric_(0.3)
            x[3].random_(0, 1000)
            x[4:].normal_()


@parts.as_eager
def copied_random_tensors(m: Any) -> None:
    with torch.no_grad():
        for x in experts(m):
            x.copy_(torch.randn(8, 8) / 3)


@parts.as_eager
def noise_is_added_to_each_part(m: Any) -> None:
    w = nn.init.zeros_(experts(m))
    with torch.no_grad():
        for x in w:
            x.add_(torch.randn_like(x), alpha=0.1)


@parts.as_eager
def dropout_of_each_part(m: Any) -> None:
    for x in nn.init.ones_(experts(m, 3, 8, 8)).data:
        F.dropout(x, 0.5, inplace=True)


@parts.as_eager
def the_whole_and_then_a_part(m: Any) -> None:
    w = nn.init.normal_(experts(m))
    nn.init.orthogonal_(w[1])
    nn.init.orthogonal_(w[2])


@parts.as_eager
def the_same_part_twice(m: Any) -> None:
    w = experts(m, 2, 8, 8)
    nn.init.orthogonal_(w[0])
    nn.init.orthogonal_(w[0])
    nn.init.orthogonal_(w[1])


@parts.as_eager
def parts_that_overlap(m: Any) -> None:
    w = experts(m, 12, 8)
    nn.init.orthogonal_(w[:8])
    nn.init.orthogonal_(w[4:])


@parts.as_eager
def every_other_row(m: Any) -> None:
    w = experts(m, 16, 8)
    nn.init.orthogonal_(w[::2])
    nn.init.orthogonal_(w[1::2])


@parts.as_eager
def two_parameters_in_turn(m: Any) -> None:
    m.a, m.b = nn.Parameter(torch.empty(3, 8, 8)), nn.Parameter(torch.empty(3, 8, 8))
    for a, b in zip(m.a, m.b):
        nn.init.orthogonal_(a)
        nn.init.orthogonal_(b)


@parts.as_eager
def parts_of_parts(m: Any) -> None:
    for expert in experts(m, 2, 16, 8).data:
        for gate in expert.chunk(2):
            nn.init.orthogonal_(gate, gain=0.5)


@parts.as_eager
def halves_of_the_flat_parameter(m: Any) -> None:
    flat = experts(m, 16, 8).data.view(-1)
    flat[:64].bernoulli_(0.5)
    flat[64:].bernoulli_(0.5)


@parts.as_eager
def before_it_is_a_parameter(m: Any) -> None:
    w = torch.empty(4, 8, 8)
    for x in w:
        nn.init.orthogonal_(x)
    m.w = nn.Parameter(w)


@parts.as_eager
def stacked(m: Any) -> None:
    m.w = nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(8, 8)) for _ in range(4)]))


@parts.as_eager
def drawn_by_a_factorisation_of_each(m: Any) -> None:
    with torch.no_grad():
        for x in experts(m):
            x.copy_(torch.linalg.qr(torch.randn(8, 8))[0])


@parts.as_eager
def parts_by_indices(m: Any) -> None:
    w = nn.init.zeros_(experts(m, 8, 16))
    with torch.no_grad():
        w[torch.arange(0, 8, 2)] = torch.randn(4, 16)
        w[torch.arange(1, 8, 2)] = torch.rand(4, 16)

"""What is asked of a parameter's place, and tensors made where it is: it is where it will be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import Kind

asked, made, chosen = Kind("device asked"), Kind("made there"), Kind("chosen by lists")


def linear(m: Any) -> nn.Parameter:
    m.layer = nn.Linear(8, 8)
    return m.layer.weight


# --- branches and attributes --------------------------------------------------------------------------


@asked.as_eager
def not_on_meta(m: Any) -> None:
    m.norm = nn.BatchNorm2d(4)
    m.register_buffer("scale", torch.zeros(4))
    if m.norm.weight.device != torch.device("meta"):
        m.scale.copy_(torch.arange(4.0))


@asked.as_eager
def is_meta(m: Any) -> None:
    if not linear(m).is_meta:
        m.layer.bias.data.zero_()


@asked.as_eager
def is_meta_of_any(m: Any) -> None:
    linear(m)
    m.later = any(p.is_meta for p in m.parameters())


@asked.as_eager
def is_cpu(m: Any) -> None:
    m.kernels = "cpu" if linear(m).is_cpu else "cuda"


@asked.as_eager
def get_device(m: Any) -> None:
    m.index = linear(m).get_device()


@asked.as_eager
def type_of_device(m: Any) -> None:
    if linear(m).device.type == "cpu":
        m.extra = nn.Parameter(torch.ones(3))


@asked.as_eager
def device_is_kept(m: Any) -> None:
    m.device = linear(m).device


@asked.as_eager
def device_of_the_first_parameter(m: Any) -> None:
    linear(m)
    m.options = {"device": next(m.parameters()).device, "dtype": next(m.parameters()).dtype}


@asked.as_eager
def device_as_text(m: Any) -> None:
    m.device_map = {"": str(linear(m).device)}


@asked.as_eager
def device_of_data_and_views(m: Any) -> None:
    w = linear(m)
    m.devices = [w.data.device, w.detach().device, w[0].device, w.T.device, m.layer.bias.device]


@asked.as_eager
def device_of_what_is_computed(m: Any) -> None:
    w = linear(m)
    m.devices = [(w * 2).device, w.sum().device, w.data.clone().device, (w.data > 0).device]
    m.meta = (w.detach() + 1).is_meta


@asked.as_eager
def other_questions(m: Any) -> None:
    w = linear(m)
    m.answers = [w.is_cuda, w.is_leaf, w.is_sparse, w.is_quantized, w.layout, w.type(), w.nbytes]
    m.kinds = [type(w), type(w.data), w.is_contiguous()]
    m.pinned, m.shared = w.is_pinned(), w.is_shared()


@asked.as_eager
def device_before_it_is_registered(m: Any) -> None:
    w = nn.Parameter(torch.empty(3))
    m.before = w.device
    m.w = w
    m.after = w.device
    nn.init.ones_(w)


@asked.as_eager
def device_of_a_copied_layer(m: Any) -> None:
    w = linear(m)
    m.other = nn.Linear(8, 8, device=w.device, dtype=w.dtype)


@asked.as_eager
def device_in_a_closure(m: Any) -> None:
    device = linear(m).device
    m.make = lambda: torch.zeros(2, device=device)


# --- tensors made there -------------------------------------------------------------------------------


@made.as_eager
def tensor_of_a_list(m: Any) -> None:
    m.register_buffer("positions", torch.tensor([1.0, 2.0, 3.0], device=linear(m).device))


@made.as_eager
def as_tensor_of_a_list(m: Any) -> None:
    w = linear(m)
    m.register_buffer("sizes", torch.as_tensor([8, 8], device=w.device, dtype=torch.int64))
    m.scale = nn.Parameter(torch.as_tensor(0.5, device=w.device, dtype=w.dtype))


@made.as_eager
def new_tensor(m: Any) -> None:
    w = linear(m)
    m.register_buffer("decay", w.new_tensor([0.9, 0.99]))
    w.data[0] = w.new_tensor(range(8))


@made.as_eager
def new_of_a_size(m: Any) -> None:
    w = linear(m)
    m.zeros, m.ones, m.full = w.new_zeros(3), w.new_ones(2, 2), w.new_full((3,), 7.0)
    m.w = nn.Parameter(w.new_empty(4, 4).normal_())


@made.as_eager
def likes(m: Any) -> None:
    w = linear(m)
    m.register_buffer("moment", torch.zeros_like(w))
    m.register_buffer("gate", torch.ones_like(w.data, dtype=torch.bool))
    m.scale = nn.Parameter(torch.full_like(w, 0.1))


@made.as_eager
def factories(m: Any) -> None:
    d = linear(m).device
    m.register_buffer("positions", torch.arange(16, device=d))
    m.register_buffer("eye", torch.eye(8, device=d))
    m.register_buffer("mask", torch.ones(8, 8, device=d).triu(1).bool())
    m.w = nn.Parameter(torch.empty(4, 4, device=d).uniform_(-1, 1))
    m.noise = nn.Parameter(torch.randn(16, 16, device=d))


@made.as_eager
def factories_under_the_device(m: Any) -> None:
    with torch.device(linear(m).device):
        m.register_buffer("positions", torch.arange(16))
        m.other = nn.Linear(4, 4)


@made.as_eager
def type_as(m: Any) -> None:
    w = linear(m)
    m.register_buffer("positions", torch.arange(4).type_as(w))


@made.as_eager
def to_another(m: Any) -> None:
    w = linear(m)
    m.register_buffer("positions", torch.arange(4).to(w))
    m.register_buffer("sizes", torch.ones(3).to(w.device))
    m.copy = nn.Parameter(w.detach().to(torch.ones(1, dtype=torch.float64)))


@made.as_eager
def moved(m: Any) -> None:
    w = linear(m)
    m.layer.to(w.device)
    m.layer.cpu()
    m.back = nn.Parameter(w.detach().to("cpu", copy=True))
    m.float()


@made.as_eager
def shape_as_a_tensor(m: Any) -> None:
    w = linear(m)
    m.register_buffer("shape", torch.tensor(w.shape, device=w.device))


@made.as_eager
def loops_over_numbers_made_there(m: Any) -> None:
    """A recurrence's decays, as RWKV computes them."""
    w = linear(m)
    m.decay = nn.Parameter(torch.ones(8))
    m.decay.data = torch.tensor([-5 + 8 * (h / 7) ** 0.7 for h in range(8)], device=w.device)
    zigzag = torch.tensor([(i + 1) % 3 - 1 for i in range(8)], dtype=w.dtype, device=w.device)
    m.first = nn.Parameter(torch.ones_like(m.decay * 0.3) + zigzag * 0.5)


@made.as_eager
def constants_that_become_parameters(m: Any) -> None:
    w = linear(m)
    x = torch.ones(1, 1, 8)
    for i in range(8):
        x[0, 0, i] = i / 8
    m.mix = nn.Parameter(torch.pow(x, 0.5).to(w.device))


# --- chosen by lists and masks ------------------------------------------------------------------------


@chosen.as_eager
def rows_by_a_list(m: Any) -> None:
    with torch.no_grad():
        linear(m)[[0, 2, 5]] = 0


@chosen.as_eager
def data_by_two_lists(m: Any) -> None:
    linear(m).data[[0, 1, 2], [2, 1, 0]] = 1.0


@chosen.as_eager
def rows_by_a_list_of_bools(m: Any) -> None:
    linear(m).data[[True, False] * 4] = 0.5


@chosen.as_eager
def rows_by_a_mask(m: Any) -> None:
    linear(m).data[torch.arange(8) % 3 == 0] = 0.0


@chosen.as_eager
def rows_are_read_by_a_list(m: Any) -> None:
    w = linear(m)
    m.picked = nn.Parameter(w.data[[1, 3]])
    m.some = nn.Parameter(w.detach()[:, torch.tensor([0, 0, 4])])


@chosen.as_eager
def rows_take_a_list_of_numbers(m: Any) -> None:
    linear(m).data[3] = torch.tensor([1.0] * 8)


@chosen.as_eager
def one_element(m: Any) -> None:
    w = linear(m)
    w.data[0, 0] = 1.0
    w.data[1, 1] *= 0.0


@chosen.as_eager
def a_mask_of_values(m: Any) -> None:
    w = linear(m)
    w.data[w.data < 0] = 0


@chosen.as_eager
def a_list_of_tokens(m: Any) -> None:
    """As trainable tokens of an embedding."""
    m.embedding = nn.Embedding(16, 8)
    m.delta = nn.Parameter(m.embedding.weight.data[[2, 7, 11]].clone())


@chosen.as_eager
def with_none_and_ellipsis(m: Any) -> None:
    w = linear(m)
    w.data[..., [0, 1]] = 2.0
    m.more = nn.Parameter(w.data[None, ..., [4, 6]])


@chosen.as_eager
def ways_to_write_some(m: Any) -> None:
    w = linear(m).data
    w.index_fill_(0, torch.tensor([0]), 0.5)
    w.index_copy_(0, torch.tensor([1]), torch.ones(1, 8))
    w.index_add_(0, torch.tensor([2]), torch.ones(1, 8))
    w.scatter_(1, torch.tensor([[3]]), 9.0)
    w.masked_fill_(torch.eye(8, dtype=torch.bool), 1.5)
    w.masked_scatter_(torch.eye(8).flip(0) > 0, torch.arange(8.0))
    w.fill_diagonal_(2.5)
    w[4].clamp_(-0.1, 0.1)
    w[5:7].copy_(torch.where(w[5:7] > 0, 1.0, -1.0))

"""Who else holds a parameter, or its memory: optimizers, lists, closures, hooks, views."""

from __future__ import annotations

import copy
import functools
import weakref
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from . import Kind

held, hooks, memory = Kind("held"), Kind("hooks"), Kind("shared memory")
Pair = namedtuple("Pair", "weight bias")


def linear(m: Any) -> nn.Parameter:
    m.layer = nn.Linear(8, 8)
    return m.layer.weight


# --- the same object at other places ------------------------------------------------------------------


@held.as_eager
def by_an_optimizer(m: Any) -> None:
    linear(m)
    m.optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)


@held.as_eager
def by_an_optimizer_with_groups_and_a_schedule(m: Any) -> None:
    linear(m)
    groups = [{"params": [m.layer.weight]}, {"params": [m.layer.bias], "weight_decay": 0.0}]
    m.optimizer = torch.optim.AdamW(groups, lr=0.1)
    m.schedule = torch.optim.lr_scheduler.StepLR(m.optimizer, 10)


@held.as_eager
def by_lists_tuples_and_dicts(m: Any) -> None:
    w = linear(m)
    m.all, m.pair, m.named = [w], Pair(w, m.layer.bias), {"w": w, "nested": [{"w": (w,)}]}


@held.as_eager
def by_its_id(m: Any) -> None:
    w = linear(m)
    m.names, m.seen = {id(p): n for n, p in m.named_parameters()}, {id(w)}


@held.as_eager
def as_a_key(m: Any) -> None:
    w = linear(m)
    m.rates, m.decayed = {w: 0.1}, {w, m.layer.bias}


@held.as_eager
def by_a_closure(m: Any) -> None:
    w = linear(m)
    m.penalty = lambda: w.square().sum()
    m.default = lambda x, w=w: x @ w


@held.as_eager
def by_a_partial_and_a_method(m: Any) -> None:
    w = linear(m)
    m.norm, m.step = functools.partial(torch.norm, w), w.add_


@held.as_eager
def by_an_alias(m: Any) -> None:
    w = linear(m)
    object.__setattr__(m, "alias", w)
    m.__dict__["other"] = m.layer.bias


@held.as_eager
def by_weak_references(m: Any) -> None:
    w = linear(m)
    m.reference = weakref.ref(w)


@held.as_eager
def by_weak_references_before_it_is_registered(m: Any) -> None:
    w = nn.Parameter(torch.randn(8, 8))
    m.reference = weakref.ref(w)
    m.w = w


@held.as_eager
def by_parameter_lists(m: Any) -> None:
    w = linear(m)
    m.list, m.dict = nn.ParameterList([w, w]), nn.ParameterDict({"w": w})


@held.as_eager
def by_two_modules(m: Any) -> None:
    m.embedding, m.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
    m.head.weight = m.embedding.weight


@held.as_eager
def by_two_modules_in_the_other_order(m: Any) -> None:
    m.embedding, m.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
    m.embedding.weight = m.head.weight
    nn.init.normal_(m.head.weight, std=0.02)


@held.as_eager
def the_module_twice(m: Any) -> None:
    linear(m)
    m.again = m.layer
    m.layers = nn.ModuleList([m.layer, nn.Linear(8, 8), m.layer])


@held.as_eager
def a_module_that_is_hidden(m: Any) -> None:
    linear(m)
    m.hidden = [nn.Linear(8, 8)]


@held.as_eager
def a_module_in_a_closure(m: Any) -> None:
    linear(m)
    teacher = nn.Linear(8, 8)
    m.teach = lambda x: teacher(x)


@held.as_eager
def a_parameter_that_is_hidden(m: Any) -> None:
    linear(m)
    m.hidden = {"w": nn.Parameter(torch.randn(8, 8)), "b": nn.Parameter(torch.zeros(8))}


@held.as_eager
def a_replaced_one_by_an_optimizer(m: Any) -> None:
    linear(m)
    m.optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    m.layer.weight = nn.Parameter(torch.randn(8, 8))


@held.as_eager
def swapped(m: Any) -> None:
    m.a, m.b = nn.Linear(8, 8), nn.Linear(8, 8)
    m.was = [m.a.weight, m.b.weight]
    m.a.weight, m.b.weight = m.b.weight, m.a.weight


@held.as_eager
def by_a_recurrent_layer(m: Any) -> None:
    m.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True)


@held.as_eager
def by_a_recurrent_layer_whose_weights_are_drawn_again(m: Any) -> None:
    m.gru = nn.GRU(8, 8)
    for p in m.gru._flat_weights:
        nn.init.normal_(p)


@held.as_eager
def attributes_of_a_parameter(m: Any) -> None:
    w = linear(m)
    w._no_weight_decay, w.lr_scale, w.partner = True, 0.5, m.layer.bias


@held.as_eager
def a_gradient(m: Any) -> None:
    w = linear(m)
    w.grad = torch.zeros_like(w)


@held.as_eager
def copies_of_layers(m: Any) -> None:
    linear(m)
    m.clones = nn.ModuleList(copy.deepcopy(m.layer) for _ in range(2))
    m.shallow = copy.copy(m.layer)


@held.as_eager
def a_subclass(m: Any) -> None:
    class Named(nn.Parameter):
        pass

    m.w = Named(torch.randn(8, 8))
    m.list = [m.w]


# --- hooks --------------------------------------------------------------------------------------------


@hooks.as_eager
def of_a_gradient(m: Any) -> None:
    m.called: list[Tensor] = []
    linear(m).register_hook(m.called.append)


@hooks.as_eager
def after_a_gradient(m: Any) -> None:
    m.called = []
    linear(m).register_post_accumulate_grad_hook(lambda p: m.called.append(p))


@hooks.as_eager
def before_it_is_registered(m: Any) -> None:
    w = nn.Parameter(torch.randn(8, 8))
    w.register_hook(lambda grad: grad * 2)
    m.w = w


@hooks.as_eager
def of_modules(m: Any) -> None:
    w = linear(m)
    m.layer.register_forward_pre_hook(lambda module, args: w)
    m.layer.register_load_state_dict_post_hook(lambda module, keys: None)
    m.register_full_backward_hook(lambda *_: None)


@hooks.as_eager
def of_a_tied_parameter(m: Any) -> None:
    w = linear(m)
    w.register_hook(lambda grad: grad)
    m.head = nn.Linear(8, 8, bias=False)
    m.head.weight = w


# --- one memory ---------------------------------------------------------------------------------------


@memory.as_eager
def tied_by_data(m: Any) -> None:
    m.embedding, m.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
    m.head.weight.data = m.embedding.weight.data


@memory.as_eager
def tied_by_data_and_drawn_again(m: Any) -> None:
    m.embedding, m.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
    m.head.weight.data = m.embedding.weight.data
    nn.init.normal_(m.head.weight, std=0.02)


@memory.as_eager
def the_transpose(m: Any) -> None:
    m.encoder = nn.Linear(8, 16)
    m.decoder = nn.Parameter(m.encoder.weight.T)


@memory.as_eager
def a_parameter_of_a_parameter(m: Any) -> None:
    m.again = nn.Parameter(linear(m))
    m.detached = nn.Parameter(m.layer.weight.detach(), requires_grad=False)


@memory.as_eager
def views_of_a_flat_parameter(m: Any) -> None:
    m.flat = nn.Parameter(torch.empty(96))
    m.a, m.b = nn.Parameter(m.flat.data[:64].view(8, 8)), nn.Parameter(m.flat.data[64:])
    nn.init.orthogonal_(m.a)
    nn.init.zeros_(m.b)


@memory.as_eager
def views_of_a_flat_tensor(m: Any) -> None:
    flat = torch.empty(96)
    m.a, m.b = nn.Parameter(flat[:64].view(8, 8)), nn.Parameter(flat[64:])
    nn.init.normal_(m.a)
    nn.init.ones_(m.b)
    m.register_buffer("flat", flat)


@memory.as_eager
def flattened_afterwards(m: Any) -> None:
    """As FSDP and flat optimizers do."""
    linear(m)
    flat = torch.cat([p.data.flatten() for p in m.layer.parameters()])
    m.flat, at = nn.Parameter(flat), 0
    for p in m.layer.parameters():
        p.data = m.flat.data[at : at + p.numel()].view_as(p)
        at += p.numel()


@memory.as_eager
def a_buffer_that_is_a_view(m: Any) -> None:
    m.register_buffer("rows", linear(m).data[:2])


@memory.as_eager
def detached(m: Any) -> None:
    w = linear(m)
    m.detached, m.data, m.transposed = w.detach(), w.data, w.data.T


@memory.as_eager
def a_view_before_a_write(m: Any) -> None:
    w = linear(m)
    m.first = w.data[0]
    nn.init.constant_(w, 2.0)


@memory.as_eager
def views_with_gradients(m: Any) -> None:
    m.halves = list(linear(m).chunk(2))


@memory.as_eager
def a_state_dict_that_is_kept(m: Any) -> None:
    linear(m)
    m.state = m.state_dict()
    m.best = {key: value.clone() for key, value in m.state_dict().items()}


@memory.as_eager
def a_moving_average(m: Any) -> None:
    linear(m)
    m.shadow = {n: p.detach().clone() for n, p in m.named_parameters()}
    m.shared = {n: p.data for n, p in m.named_parameters()}


@memory.as_eager
def a_loaded_state_dict(m: Any) -> None:
    m.a, m.b = nn.Linear(8, 8), nn.Linear(8, 8)
    m.b.load_state_dict(m.a.state_dict())


@memory.as_eager
def an_assigned_state_dict(m: Any) -> None:
    m.a, m.b = nn.Linear(8, 8), nn.Linear(8, 8)
    m.b.load_state_dict(m.a.state_dict(), assign=True)


@memory.as_eager
def parameters_from_a_vector(m: Any) -> None:
    linear(m)
    vector = nn.utils.parameters_to_vector(m.layer.parameters())
    m.register_buffer("vector", vector.detach() * 2)
    nn.utils.vector_to_parameters(m.vector, m.layer.parameters())


@memory.as_eager
def an_averaged_model(m: Any) -> None:
    linear(m)
    m.average = torch.optim.swa_utils.AveragedModel(m.layer)


@memory.as_eager
def two_buffers_of_one_random_tensor(m: Any) -> None:
    table = torch.randn(16, 8)
    m.register_buffer("even", table[::2])
    m.register_buffer("odd", table[1::2])


@memory.as_eager
def a_tensor_set_to_another(m: Any) -> None:
    w = linear(m)
    with torch.no_grad():
        m.layer.bias.set_(w.data[0])


@memory.as_eager
def expanded(m: Any) -> None:
    m.row = nn.Parameter(torch.randn(1, 8))
    m.register_buffer("rows", m.row.data.expand(4, 8))

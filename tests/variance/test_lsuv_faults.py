"""LSUV: failures change nothing, and what is wrong is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lsuv_judged import Fault, assert_same, mlp
from torch import Tensor, nn

from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.lsuv import lsuv_
from tests.running_models import everything


def test_nested_tensors_are_an_error() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(4, 10, 32)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[1, 6:] = True
    before = everything(model)
    with pytest.raises(LSUVError, match=r"self_attn\.q_proj is a nested tensor"):
        lsuv_(model, x, src_key_padding_mask=mask)
    assert_same(before, everything(model))


def interrupt(x: Tensor) -> Tensor:
    raise KeyboardInterrupt


def out_of_memory(x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = math.nan
    return x


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], type[BaseException], str]] = {
    "interrupt": (interrupt, KeyboardInterrupt, "^$"),
    "out of memory": (out_of_memory, torch.OutOfMemoryError, "out of memory"),
    "NaN": (with_nan, LSUVError, r"output of \d+ has values that are not finite: Moments\(count="),
    "infinity": (lambda x: x / 0, LSUVError, "not finite"),
    "dead": (torch.zeros_like, LSUVError, r"\d+ is dead"),
    "empty": (lambda x: x[:0], LSUVError, r"output of \d+ has fewer than two values"),
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_layer_changes_nothing(fault: str, place: int) -> None:
    act, error, message = FAULTS[fault]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [Fault(act)] if i == place else []
        layers += [nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.1)]
    model = nn.Sequential(*layers)
    before = everything(model)
    with pytest.raises(error, match=message):
        lsuv_(model, torch.ones(16, 8).uniform_(generator=torch.Generator()), pre="orthonormal")
    assert_same(before, everything(model))


def test_a_bias_larger_than_the_target_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(64, 8)
    nn.init.normal_(model[0].bias, std=2.0)
    before = everything(model)
    with pytest.raises(LSUVError, match=r"0: the variance of its bias alone, .* is not below"):
        lsuv_(model, x)
    assert_same(before, everything(model))


def test_an_iterator_that_ends_is_an_error() -> None:
    def once() -> Iterator[Tensor]:
        yield from (torch.randn(8, 64), torch.randn(8, 64) * 5)

    with pytest.raises(ValueError, match="batches must not be empty, but was in pass 2"):
        lsuv_(mlp(2), batches=once())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_std": 0.0}, "target_std must be positive and finite, but got 0.0"),
        ({"target_std": {"0": -1.0}}, r"target_std\['0'\] must be positive"),
        ({"target_std": {"nobody": 1.0}}, "target_std names layers that are not: nobody"),
        ({"tol": 0.0}, "tol must be in"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"pre": "random"}, "pre must be"),
        ({"reuse": "last"}, "reuse must be"),
        ({"layers": ["nobody"]}, "layers names modules that the model has not: nobody"),
        ({"batches": [torch.zeros(2, 64)]}, "batches and inputs exclude each other"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model = mlp(2)
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        lsuv_(model, torch.zeros(4, 64), **arguments)
    with pytest.raises(TypeError, match="layers must be types, names or a predicate, but got 7"):
        lsuv_(model, torch.zeros(4, 64), layers=7)
    assert_same(before, everything(model))

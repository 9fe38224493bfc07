"""Views of parameters, written in turn: as torch.nn.init does, whatever was written before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import init

VIEWS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "chunk": lambda w: w.chunk(4),
    "chunk of columns": lambda w: w.chunk(2, dim=1),
    "split": lambda w: w.split(2),
    "split in unequal parts": lambda w: w.split([3, 5]),
    "unbind": lambda w: w.view(2, 4, 8).unbind(0),
    "iteration": lambda w: list(w.view(2, 4, 8)),
    "tensor_split": lambda w: torch.tensor_split(w, 3),
    "slice": lambda w: [w[:4], w[4:]],
    "every other row": lambda w: [w[::2], w[1::2]],
    "narrow": lambda w: [w.narrow(0, 0, 2), w.narrow(0, 2, 6)],
    "transpose": lambda w: [w.t(), w.mT],
    "select": lambda w: [w.view(2, 4, 8).select(0, 1), w.view(2, 4, 8).select(1, 2)],
    "diagonal": lambda w: [w.view(2, 4, 8).diagonal(dim1=0, dim2=2)],
    "unfold": lambda w: w.unfold(0, 4, 4).unbind(0),
    "permute": lambda w: [w.view(2, 4, 8).permute(2, 0, 1)],
    "chunk of chunk": lambda w: [half for part in w.chunk(2) for half in part.chunk(2)],
    "data": lambda w: w.data.chunk(2),
    "detach": lambda w: w.detach().chunk(2),
}
WRITERS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform_": lambda t: init.uniform_(t, seed=1),
    "normal_": lambda t: init.normal_(t, seed=1),
    "trunc_normal_": lambda t: init.trunc_normal_(t, seed=1),
    "constant_": lambda t: init.constant_(t, 3.0),
    "ones_": init.ones_,
    "zeros_": init.zeros_,
    "eye_": init.eye_,
    "xavier_uniform_": lambda t: init.xavier_uniform_(t, seed=1),
    "xavier_normal_": lambda t: init.xavier_normal_(t, seed=1),
    "kaiming_uniform_": lambda t: init.kaiming_uniform_(t, seed=1),
    "kaiming_normal_": lambda t: init.kaiming_normal_(t, seed=1),
    "orthogonal_": lambda t: init.orthogonal_(t, seed=1),
    "sparse_": lambda t: init.sparse_(t, 0.5, seed=1),
    "variance_scaling_": lambda t: init.variance_scaling_(t, seed=1),
    "lecun_normal_": lambda t: init.lecun_normal_(t, seed=1),
    "lecun_uniform_": lambda t: init.lecun_uniform_(t, seed=1),
}


def written_before(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(1.0)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("view", VIEWS)
def test_each_is_written_and_reaches_the_parameter(view: str, grad: bool) -> None:
    for name, write in WRITERS.items():
        weight = nn.Parameter(torch.full((8, 8), 7.0))
        with nullcontext() if grad else torch.no_grad():
            parts = VIEWS[view](weight)
            if name in ("eye_", "sparse_") and parts[0].dim() != 2:
                continue
            written_before(weight)
            for part in parts:
                before = weight._version
                assert write(part) is part
                assert weight._version > before or view == "data"
        # The last part holds what a plain tensor of its shape would: no other view is written after it.
        plain = write(torch.empty(parts[-1].shape))
        there = VIEWS[view](weight.detach())[-1]
        torch.testing.assert_close(there, plain, msg=lambda text, name=name: f"{name}: {text}")
        assert weight.requires_grad
        assert weight.grad_fn is None
        (weight * 2).sum().backward()  # still a leaf that learns


@pytest.mark.parametrize("patched", [False, True])
def test_the_gates_of_an_lstm(patched: bool) -> None:
    """The common idiom: each gate's square is orthogonal."""
    with fastinit.patched() if patched else nullcontext():
        function = nn.init.orthogonal_ if patched else init.orthogonal_
        weight = nn.LSTM(8, 8).weight_hh_l0
        for gate in weight.chunk(4):
            function(gate)
    for gate in weight.detach().chunk(4):
        torch.testing.assert_close(
            gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0.0
        )  # as documented


def test_a_view_of_a_computed_weight_still_warns() -> None:
    computed = nn.Parameter(torch.ones(8, 8)) * 2
    for part in computed.chunk(2):
        with pytest.warns(init.LostWriteWarning):
            init.normal_(part)


def test_no_view_of_a_parameter_warns() -> None:
    weight = nn.Parameter(torch.ones(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in weight.chunk(2):
            init.normal_(part)

"""LSUV over batches: of a loader, shuffled, that differ, with a step of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_lsuv_kinds import OPTIONS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastinit import LSUVError, lsuv_
from tests.running_models import (
    differences,
    everything,
)
from tests.variance.test_layers import OTHER


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_batches(autocast: bool, options: str) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), OTHER["residual"](32, 32), nn.Linear(32, 4))
    batches = [torch.randn(64, 8) * scale for scale in (0.5, 1.0, 2.0)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = lsuv_(model, batches=batches, verify=True, **OPTIONS[options])
    assert 1 < result.passes <= 5


class Shuffled:
    """A loader of (inputs, targets) with a generator of its own, so that each pass has another order."""

    def __init__(self, augment: float = 0.0) -> None:
        scales = torch.logspace(-1, 1, 12).repeat_interleave(8)[:, None]
        inputs = torch.randn(96, 8) * scales
        self.data = TensorDataset(inputs, torch.zeros(96))
        self.generator, self.augment = torch.Generator().manual_seed(1), augment
        self.orders: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(12, generator=self.generator)
        for i in order.tolist():
            rows = slice(8 * i, 8 * i + 8)
            inputs, targets = self.data[rows]
            if self.augment:
                inputs = inputs * torch.rand(1, generator=self.generator) ** self.augment
            yield inputs, targets
        self.orders.append(order[0].item())


def test_passes_over_a_loader_that_shuffles() -> None:
    model, loader = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), Shuffled()
    result = lsuv_(model, batches=loader, get_input=lambda batch: batch[0], verify=True)
    assert len(set(loader.orders)) > 1
    assert [m.note for m in result.layers] == ["", ""]


def test_batches_that_differ_say_so_if_they_do_not_settle() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    given = {"batches": Shuffled(augment=4.0), "get_input": lambda batch: batch[0]}
    result = lsuv_(model, **given)
    why = "not within 0.02 after 5 passes: their batches differed, as of a loader that shuffles"
    assert why in [m.note for m in result.layers]
    before = everything(model)
    with pytest.raises(
        LSUVError, match=r"(?s)in a plain pass the std of these layers is .*batches differed"
    ):
        lsuv_(model, verify=True, **given)
    assert differences(before, everything(model)) == []


def test_a_data_loader_of_inputs_and_targets() -> None:
    data = TensorDataset(torch.randn(96, 8), torch.zeros(96))
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.3), nn.Linear(32, 4))
    state = torch.get_rng_state()
    for given in (
        {"get_input": lambda batch: batch[0]},
        {"step": lambda x, y: F.mse_loss(model(x)[:, 0], y)},
    ):
        loader = DataLoader(data, batch_size=24, shuffle=True)
        result = lsuv_(model, batches=loader, verify=True, tol=1e-3, **given)
        assert [m.note for m in result.layers] == ["", ""]
    assert torch.get_rng_state().equal(state)


def test_a_step_runs_the_model_as_it_likes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(8, 4), nn.Linear(4, 8)

    model, x = Twice(), torch.randn(64, 8)
    result = lsuv_(model, step=lambda: model.decode(model.encode(x)), verify=True)
    assert [m.name for m in result.layers] == ["encode", "decode"]
    again = lsuv_(model, x, step=lambda x: model.decode(model.encode(x)))
    assert again.scales == pytest.approx({"encode": 1.0, "decode": 1.0}, rel=1e-5)
    with pytest.raises(ValueError, match="get_input is of batches, but there are none"):
        lsuv_(model, step=lambda: None, get_input=lambda batch: batch)

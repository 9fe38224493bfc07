"""What lsuv_ and watch need beyond a plain forward, counted allocation by allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.watch.watch import watch

MIB = 1 << 20


class Memory(NamedTuple):
    """Bytes of torch's CPU allocator: at most at once, and left while the result is still there."""

    peak: int
    left: int


def memory(act: Callable[[], Any]) -> Memory:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = act()
    events = recorded.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted(
        (e for e in events if e.name() == "[memory]"), key=lambda e: int(e.start_ns())
    ):
        live += event.nbytes()
        peak = max(peak, live)
    del result
    return Memory(peak, live)


def mlp() -> tuple[nn.Module, Tensor]:
    """Outputs of 4 MiB, weights of 1 MiB."""
    pairs = ((nn.Linear(512, 512), nn.ReLU()) for _ in range(6))
    return nn.Sequential(*(module for pair in pairs for module in pair)), torch.randn(2048, 512)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Outputs of 4 to 8 MiB."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 128, 3, stride=2, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(128, 16, 2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 32 * 32, 100),
    )
    return net, torch.randn(64, 3, 32, 32)


NETS = {"mlp": mlp, "convolutions": convolutions}


def plain(model: nn.Module, x: Tensor) -> Memory:
    """That of a forward pass; its own output is gone at the end."""

    def forward() -> None:
        with torch.no_grad():
            model(x)

    forward()  # what a first call sets up is not counted
    return memory(forward)


@pytest.mark.parametrize("biases", ["torch's", "zero"])
@pytest.mark.parametrize("net", NETS)
def test_lsuv_needs_no_mebibyte_beyond_a_forward(net: str, biases: str) -> None:
    torch.manual_seed(0)
    model, x = NETS[net]()
    if biases == "zero":
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
    before = plain(model, x)
    for options in ({}, {"center": True}, {"reuse": "pool"}):
        needed = memory(lambda options=options: lsuv_(model, x, **options))
        assert before.peak > 4 * MIB
        assert needed.peak - before.peak < MIB
        assert needed.left < 64 << 10  # the result's moments


@pytest.mark.parametrize("net", NETS)
def test_watch_needs_no_mebibyte_beyond_a_forward(net: str) -> None:
    torch.manual_seed(0)
    model, x = NETS[net]()

    def watched() -> Any:
        with watch(model, gradients=True) as w, torch.no_grad():
            model(x)
        return w

    before, needed = plain(model, x), memory(watched)
    assert needed.peak - before.peak < MIB
    # Where graphs would write each unit's extremes, 16 bytes, forward and backward: 96 KiB of 6 layers.
    assert needed.left < 128 << 10


def test_of_attention_one_input_projection_is_copied_at_a_time() -> None:
    torch.manual_seed(0)
    size, depth = 512, 4
    attend = nn.TransformerEncoderLayer(size, 8, size, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(attend, depth, enable_nested_tensor=False)
    x = torch.randn(2, 64, size)
    needed = memory(lambda: lsuv_(model, x))
    weights = 3 * size * size * 4
    assert needed.peak - plain(model, x).peak < weights + MIB
    assert needed.left < 64 << 10

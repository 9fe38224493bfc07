"""What was read lies on the CPU, whatever torch's default device: "meta" here, which holds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit.statistics.fields import Moments
from fastinit.statistics.tensor import moments
from fastinit.variance.run.run import Run

COUNTED: dict[str, Any] = {"formats": ["e4m3"], "histogram": True}
SCALED: dict[str, Any] = {"formats": ["nvfp4", "e5m2_tensor"], "histogram": True}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def plain(m: Moments) -> dict[str, Any]:
    return m.plain()


def by_channel(x: Tensor, **options: Any) -> list[Any]:
    m = moments(x, dim=1, **options).all_merge()
    assert m.histogram is not None
    shares = [share.plain() for share in m.formats.values()]
    values = [m.std, *shares[0].values(), *m.histogram.bounds(0.3), m.histogram.quantile(0.3)]
    return [value.tolist() for value in values]  # type: ignore[union-attr]


def quantiles(x: Tensor) -> list[Any]:
    histogram = moments(x, histogram=True).histogram
    assert histogram is not None
    return [histogram.quantile(0.3), histogram.bounds(0.9)]


def watched(model: nn.Module, x: Tensor, path: Path) -> str:
    """And told to a file, from which it is read."""
    asked = {"gradients": True, "inputs": True, "weight_gradients": True, "higher": True}
    with fastinit.watch(model, every=1, to=path, group=None, **asked, **SCALED) as w:
        for _ in range(3):
            model(x).square().mean().backward()
        w.step()
    run = Run.load(path)
    assert run.last is not None
    return json.dumps([w._read().plain(), run.last.plain(), run.stds("gradient")])


def transferred(model: nn.Module, x: Tensor) -> list[Any]:
    assert isinstance(model, nn.Sequential)
    fastinit.transfer_scale_(model[0], model[2], 2.0)
    return model[2].weight.tolist()  # type: ignore[no-any-return]


READ: dict[str, Callable[[nn.Module, Tensor, Path], Any]] = {
    "moments": lambda model, x, path: plain(moments(x, higher=True)),
    "shares and a histogram": lambda model, x, path: plain(moments(x, **SCALED)),
    "of strided": lambda model, x, path: plain(moments(x.t()[:, ::2], higher=True, **SCALED)),
    "quantiles": lambda model, x, path: quantiles(x),
    "by channel": lambda model, x, path: by_channel(x, higher=True, **COUNTED),
    "merged": lambda model, x, path: plain(moments(x, **SCALED).merge(moments(2 * x, **SCALED))),
    "of all ranks": lambda model, x, path: plain(moments(x, higher=True, **SCALED).all_merge()),
    "of a product": lambda model, x, path: plain(fastinit.linear_moments(x, x)),
    "a watch": watched,
    "lsuv_": lambda model, x, path: fastinit.lsuv_(model, x).product,
    "transfer_scale_": lambda model, x, path: transferred(model, x),
}


@pytest.mark.parametrize("what", READ)
def test_the_default_device_changes_nothing_that_is_read(what: str, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        model, x = net(), torch.randn(32, 8)
        with torch.device(device):
            found.append(READ[what](model, x, tmp_path / f"{device}.jsonl"))
    assert str(found[0]) == str(found[1])  # of NaN too

"""A watch with the higher moments: of everything that it measures, in records, curves and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from watching import mlp

from fastinit.statistics.derived import HIGHER
from fastinit.statistics.tensor import Moments, moments
from fastinit.variance.run.run import Run
from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch

SIGNALS = ("forward", "gradient", "input", "weight", "weight_gradient")


class Times:
    """A loss scaler."""

    def scale(self, outputs: Tensor) -> Tensor:
        return outputs * 1024


def test_all_signals_have_them() -> None:
    model, x = mlp(), torch.randn(16, 32)
    with watch(model, gradients=True, inputs=True, weight_gradients=True, higher=True) as w:
        for _ in range(2):
            model(x).square().mean().backward()
    h, layer = x, model[0]
    assert isinstance(layer, nn.Linear)
    out, row = layer(h), w.layers[0]
    assert set(row.signals()) == set(SIGNALS)
    assert row.input is not None
    assert row.weight is not None
    assert row.weight_gradient is not None
    assert layer.weight.grad is not None
    for got, value in (
        (row.forward, torch.cat([out, out])),
        (row.input, torch.cat([x, x])),
        (row.weight, layer.weight),
        (row.weight_gradient, layer.weight.grad),
    ):
        expected = moments(value.detach(), higher=True)
        for field in HIGHER:  # two calls are merged: the last digits are others
            assert getattr(got, field) == pytest.approx(getattr(expected, field), rel=1e-11), field
    plain = json.loads(w.to_json())["layers"][0]
    assert plain["forward"]["kurtosis"] == row.forward.kurtosis
    assert plain["backward"]["absmean"] == row.signals()["gradient"].absmean


def test_without_there_are_none_and_the_table_is_the_same() -> None:
    model, x = mlp(), torch.randn(16, 32)
    with watch(model) as w, watch(model, higher=True) as more:
        model(x)
    assert w.table() == more.table()
    assert "kurtosis" not in w.to_json()
    with pytest.raises(AttributeError, match="higher=True"):
        w.layers[0].forward.kurtosis  # noqa: B018
    assert w.layers[0].forward.rms == more.layers[0].forward.rms


def test_a_loss_scale_is_taken_out_of_them() -> None:
    model, x = mlp(), torch.randn(16, 32)
    scaler = Times()
    with watch(model, gradients=True, higher=True, scaler=scaler) as scaled:
        scaler.scale(model(x).square().mean()).backward()
    with watch(model, gradients=True, higher=True) as plain:
        model(x).square().mean().backward()
    for a, b in zip(scaled.layers, plain.layers):
        assert a.backward is not None
        assert b.backward is not None
        assert a.backward.raw.equal(b.backward.raw)  # by a power of two


def test_records_and_curves(tmp_path: Path) -> None:
    model, x = mlp(), torch.randn(16, 32)
    told: list[Measured] = []
    path = tmp_path / "stats.jsonl"
    with watch(model, every=1, higher=True, to=[path, told.append]) as w:
        for _ in range(3):
            model(x)
            w.step()
    scalars = told[0].scalars()
    for layer in told[0].layers:
        for field in ("rms", "l2", "crest", *HIGHER):
            tag = f"forward_{field}/{layer.name}"
            assert scalars[tag] == getattr(layer.forward, field)
    loaded = Run.load(path).last
    assert loaded is not None
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in told[-1].layers]
    for got, layer in zip(loaded.layers, told[-1].layers):
        for field in HIGHER:  # made of what is derived: rounded a few times
            of_file, known = getattr(got.forward, field), getattr(layer.forward, field)
            assert of_file == pytest.approx(known, rel=1e-12), field


def test_what_has_no_shape_is_null_in_a_record() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    with watch(model, higher=True) as w:
        model(torch.ones(2, 3))
    weight = json.loads(w.to_json())["layers"][0]["weight"]
    assert (weight["kurtosis"], weight["dynamic_range"], weight["l1"]) == (None, None, 0.0)
    assert weight["smallest"] == "Infinity"
    assert isinstance(w.layers[0].weight, Moments)
    assert "weight_kurtosis/0" not in w._read().scalars()

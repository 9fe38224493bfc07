"""watch(formats=, histogram=): what is counted goes with the moments, into records, curves and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.statistics.formats import Counts
from fastinit.statistics.tensor import Moments, moments
from fastinit.stream.formats import NOTHING, Counting
from fastinit.variance.run.run import Run
from fastinit.variance.watch import rows as watch_rows
from fastinit.variance.watch.cuts import Cut
from fastinit.variance.watch.record import FOLD
from fastinit.variance.watch.rows import Row, Seen

NAMES = ["e4m3", "mxfp8", "nvfp4"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))


def test_all_that_is_measured_is_counted() -> None:
    model, x = net(), torch.randn(32, 64)
    asked = {"gradients": True, "inputs": True, "weight_gradients": True, "higher": True}
    with fastinit.watch(model, formats=NAMES, histogram=True, **asked) as w:
        model(x).square().mean().backward()
    layer = w.layers[0]
    signals = {
        "input": x,
        "forward": model[0](x),
        "weight": model[0].weight,
        "weight_gradient": model[0].weight.grad,
    }
    for name, values in signals.items():
        alone = moments(values, formats=NAMES, histogram=True)
        found = getattr(layer, name)
        assert found.formats == alone.formats
        assert found.histogram.counts.equal(alone.histogram.counts)  # type: ignore[union-attr]
        assert found.higher
    assert layer.backward is not None
    assert list(layer.backward.formats) == NAMES


def test_calls_add_up_beyond_what_is_kept_apart() -> None:
    model = net()
    xs = [torch.randn(4, 64) * 2.0**i for i in range(-20, FOLD - 19)]
    with fastinit.watch(model, formats=["e5m2"], histogram=True) as w:
        for x in xs:
            model(x)
    alone = [moments(model[0](x), formats=["e5m2"], histogram=True) for x in xs]
    whole = alone[0].merge(*alone[1:])
    assert w.layers[0].calls == len(xs)
    assert w.layers[0].forward.formats == whole.formats
    assert w.layers[0].forward.histogram.plain() == whole.histogram.plain()  # type: ignore[union-attr]


def test_files_and_curves_have_them(tmp_path: Path) -> None:
    model, told = net(), []
    file = tmp_path / "stats.jsonl"
    to = [file, told.append]
    with fastinit.watch(model, every=1, to=to, formats=["e4m3"], histogram=True) as w:
        for _ in range(3):
            model(torch.randn(4, 64))
            w.step()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    forward = lines[0]["layers"][0]["forward"]
    assert set(forward["formats"]["e4m3"]) == {"flushed", "saturated", "subnormal"}
    assert sum(forward["histogram"].values()) + forward["zeros"] == forward["count"]
    scalars = told[0].scalars()
    assert scalars["forward_e4m3_flushed/0"] == forward["formats"]["e4m3"]["flushed"]
    assert json.loads(w.to_json())["layers"][0]["weight"]["histogram"]


ASKED: dict[str, dict[str, Any]] = {
    "formats": {"formats": ["nvfp4", "e5m2"]},
    "a histogram": {"histogram": True},
    "both": {"formats": ["float16", "mxfp8"], "histogram": True},
    "the higher moments too": {"formats": ["e4m3"], "histogram": True, "higher": True},
    "nothing": {},
}


@pytest.mark.parametrize("asked", ASKED)
def test_counts_are_read_back_as_what_they_were(asked: str, tmp_path: Path) -> None:
    model, told, file = net(), [], tmp_path / "stats.jsonl"
    values = torch.randn(7, 64) * 10.0 ** torch.linspace(-44, 38, 7).unsqueeze(1)
    values[0, :3] = torch.tensor([math.inf, math.nan, 0.0])
    with torch.no_grad():
        model[2].weight.fill_(math.nan)  # of which no value is finite
    with fastinit.watch(
        model, every=1, to=[file, told.append], inputs=True, weight_gradients=True, **ASKED[asked]
    ) as w:
        model(values)
        w.step()
    loaded = Run.load(file).last
    assert loaded is not None
    assert loaded.scalars().keys() == told[0].scalars().keys()
    for here, there in zip(loaded.layers, told[0].layers):
        assert here.signals().keys() == there.signals().keys()
        for one, other in zip(here.signals().values(), there.signals().values()):
            if other.counts is None:
                assert one.counts is None
                continue
            assert one.counts is not None
            assert one.counts.asked == other.counts.asked
            assert one.counts.numbers.equal(other.counts.numbers)
            merged = one.merge(other)
            assert merged.counts is not None
            assert merged.counts.numbers.equal(2 * other.counts.numbers)


def test_nothing_is_counted_unasked() -> None:
    model = net()
    w = fastinit.watch(model, step=lambda: model(torch.randn(4, 64)))
    assert w.layers[0].forward.counts is None
    assert "formats" not in w.to_json()
    assert not any("e4m3" in name for name in w._read().scalars())


def test_counts_of_scaled_gradients_are_refused() -> None:
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="as they are"):
        fastinit.watch(net(), gradients=True, scaler=scaler, histogram=True)


def row_of(x: torch.Tensor, weight: torch.Tensor, counted: Counting, part: str = "") -> Row:
    def raw(values: torch.Tensor) -> list[float]:
        named, histogram = counted
        return moments(values, formats=named, histogram=histogram).row.tolist()

    seen = Seen(1, raw(x), cut=Cut(part))
    numbers = 1.0, 1.0, "", 0
    return Row(
        "a", "Linear", seen, None, None, raw(weight), None, part, True, *numbers, [], counted
    )


def test_ranks_counts_add_up_and_parts_count_once() -> None:
    counted = Counting(("e4m3", "float16"), True)
    x, weight = torch.randn(4, 6, 32) * 1e-4, torch.randn(2, 8) * 1e-3
    of_rank = {rank: row_of(x[rank], weight[rank % 2], counted, str(rank % 2)) for rank in range(4)}
    one = watch_rows._merged_row(of_rank, {0: 0, 1: 0, 2: 1, 3: 1})
    (found,) = watch_rows.watched([one])
    named, histogram = counted
    whole = moments(x, formats=named, histogram=histogram)
    assert found.forward.formats == whole.formats
    assert found.forward.histogram.plain() == whole.histogram.plain()  # type: ignore[union-attr]
    assert found.weight is not None
    assert found.weight.formats == moments(weight, formats=named).formats


def test_ranks_that_count_other_things_are_an_error() -> None:
    x = torch.randn(4, 8)
    some, other = row_of(x, x, Counting(("e4m3",), False)), row_of(x, x, NOTHING)
    with pytest.raises(ValueError, match="different things"):
        watch_rows._merged_row({0: some, 1: other}, {0: 0, 1: 1})


def test_of_counts_beyond_float32_no_integer_is_lost() -> None:
    count = 2**40 + 1
    numbers = [2**24 + 1, 2**39 + 1, 0, count - 1]
    asked = Counting(("e4m3", "float16"), False)
    raw = torch.tensor([count, 0.0, 1.0, -1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    one = Moments(raw, counts=Counts(asked, torch.tensor([*numbers, 0, 1])))
    assert one.formats["e4m3"].flushed == numbers[0] / count
    assert one.formats["float16"].flushed == numbers[3] / count
    (read,) = Moments.of_plain([one.plain()])
    assert read.counts is not None
    assert read.counts.numbers.tolist() == [*numbers, 0, 1]

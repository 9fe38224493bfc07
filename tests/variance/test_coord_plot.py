"""The picture of a coordinate check."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from fastinit.variance.coord.plot import COLOURS, NAMED, Line, sizes_by_width

pytest.importorskip("matplotlib")

WIDTHS = [64, 128, 256]


def line(name: str, verdict: str, power: float) -> Line:
    """Of two seeds and three steps: the size at step 0 is 1, and the changes go by the power."""
    sizes = torch.ones(3, 2, 3, dtype=torch.float64)
    changes = torch.tensor(WIDTHS, dtype=torch.float64).pow(power)[:, None, None].expand(3, 2, 3)
    return Line(name, verdict, sizes, changes.clone())


def test_a_panel_for_the_start_the_end_and_the_change(tmp_path: Path) -> None:
    lines = [line("first", "flat", 0.0), line("second", "grows", 1.0)]
    lines[0].sizes[2, :, 2] = math.inf
    lines[1].sizes[0, :, 0] = 0.0
    figure = sizes_by_width(WIDTHS, lines, "rms", path=tmp_path / "coord.PNG")
    assert (tmp_path / "coord.PNG").read_bytes().startswith(b"\x89PNG")
    panels = figure.axes
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles == ["as initialised", "at step 2", "change from step 0 to 2"]
    assert [panel.get_ylabel() for panel in panels] == ["root mean square", "", ""]
    for panel in panels:
        assert [label.get_text() for label in panel.get_xticklabels()] == ["64", "128", "256"]
        assert {text.get_text() for text in panel.texts} <= {"first", "second"}
    means = [drawn for drawn in panels[2].lines if drawn.get_linestyle() == "-"]
    assert [drawn.get_color() for drawn in means] == [COLOURS["flat"], COLOURS["grows"]]
    assert list(means[1].get_ydata()) == pytest.approx(WIDTHS)
    # What has no place on the axis is left out, and nothing else.
    kept = [math.isnan(y) for y in panels[0].lines[len(panels[0].lines) // 2].get_ydata()]
    assert kept == [True, False, False]
    assert [math.isnan(y) for y in panels[1].lines[0].get_ydata()] == [False, False, True]
    legend = figure.legends[0].get_texts()
    assert [text.get_text() for text in legend] == ["flat", "grows"]


def test_of_many_layers_those_that_fail_have_names_that_do_not_lie_on_each_other() -> None:
    flat = [line(f"h.{i}", "flat", 0.0) for i in range(NAMED)]
    failing = [line(f"transformer.encoder.{i}.projection", "grows", 1.0) for i in range(3)]
    figure = sizes_by_width(WIDTHS, [*flat, *failing], "l1")
    assert figure.axes[0].get_ylabel() == "mean absolute value"
    for panel in figure.axes:
        assert len(panel.texts) == 3
        places = sorted(text.get_position()[1] for text in panel.texts)
        assert min(b - a for a, b in itertools.pairwise(places)) > 0.05
        assert all("projection" in text.get_text() for text in panel.texts)


def test_a_format_that_nobody_writes() -> None:
    with pytest.raises(ValueError, match=r"coord\.doc must end in one of \."):
        sizes_by_width(WIDTHS, [line("a", "flat", 0.0)], "rms", path="coord.doc")

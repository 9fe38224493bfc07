"""What notebooks show: the table that a terminal has, with names escaped and whole."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fastinit
from fastinit import Fill, Plan
from fastinit.base import html, text
from fastinit.statistics.tensor import moments
from fastinit.variance.coord.result import CoordCheck, Coordinates
from fastinit.variance.lsuv.result import LSUVResult, Measured

NASTY = "<script>alert('&')</script>_of_a_layer_whose_name_is_far_longer_than_what_a_terminal_has"


class Named(nn.Module):
    """A model whose layer has any name, with any attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(NASTY, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(NASTY)(x)


def watched() -> object:
    model = Named()
    with fastinit.watch(model) as w:
        model(torch.randn(8, 4))
    return w


def lsuv() -> object:
    seen = moments(torch.randn(64))
    layers = [Measured(NASTY, "Linear", seen, std=1.0)]
    return LSUVResult(layers, passed={"b": "it has no <b>"})


def coordinates() -> object:
    sizes = torch.rand(3, 2, 2) + 1
    widths = [8, 16, 32]
    found = Coordinates.of(NASTY, "Linear", widths, sizes, sizes, True, 0.1)
    return CoordCheck([found], widths, "rms", 0.1, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan({NASTY: Fill.normal(0, 1)}),
        lambda: Plan({f"layers.{i}.{NASTY}": Fill.constant(0) for i in range(3)}),
        lambda: fastinit.audit(Named()),
        watched,
        lsuv,
        coordinates,
    ],
    ids=["plan", "plan of layers", "audit", "watch", "lsuv", "coord"],
)
def test_a_notebook_shows_a_table_with_names_escaped(make: Callable[[], object]) -> None:
    said = make()._repr_html_()  # type: ignore[attr-defined]
    page = ElementTree.fromstring(f"<div>{said}</div>")  # raises at what is not well-formed
    assert page.find(".//script") is None
    cells = ["".join(cell.itertext()) for cell in page.iter("td")]
    assert any(NASTY in cell for cell in cells)
    head, *body = page.iter("tr")
    assert all(len(row) == len(head) for row in body)


def test_what_has_no_table_yet_is_shown_by_its_repr() -> None:
    assert fastinit.watch(Named())._repr_html_() is None


def test_a_table_is_text_with_lines_below_on_a_page_as_well() -> None:
    made = text.table([("a", "b"), ("x", "1")], "<>").above(["1 < 2"])
    assert made == "a         b\n-----------\nx         1\n1 < 2"
    assert made._repr_html_().endswith("</table><p>1 &lt; 2</p>")
    assert isinstance(made, str)


@pytest.mark.parametrize("bad", [False, True])
def test_rows_are_marked(bad: bool) -> None:
    made = html.table([("a",), ("1",)], is_bad=lambda row: bad)
    assert made.count("class=bad") == bad

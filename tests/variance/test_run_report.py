"""The report of a run: what it says is what was measured, in one file that loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn
from watching import mlp

pytest.importorskip("matplotlib")

from fastinit.variance.run.report import WORST, summary, worst
from fastinit.variance.run.run import SIGNALS, Run
from fastinit.variance.watch.watch import watch


class Page(HTMLParser):
    """What a page consists of; raises where a tag is closed that is not open."""

    EMPTY = ("meta", "path", "use", "image", "rect", "circle", "line", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run() -> Run:
    """A training whose last steps have values that are not finite, and a layer with dead units."""
    torch.manual_seed(0)
    model, run = nn.ModuleDict({"<b>&": mlp(9)}), Run()
    net = model["<b>&"]
    net[4].weight.data[:5] = 0
    net[4].bias.data[:5] = 0
    with watch(model, gradients=True, every=2, to=run) as w:
        for number in range(8):
            if number == 4:
                net[12].weight.data[0, 0] = float("inf")
            net(torch.randn(8, 32)).square().mean().backward()
            net[0].weight.data.mul_(1.5)
            w.step()
    return run


def test_a_report_says_what_was_measured(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run.report(path, "of <us>")
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert "<h1>of &lt;us&gt;</h1>" in text
    assert "kurtosis" not in text  # nor formats: they were not recorded
    assert "formats" not in text
    assert text.count("<svg") == 4
    assert run.last is not None
    head, *rows = page.rows
    assert head[:3] == ["layer", "kind", "std"]
    assert [row[0] for row in rows] == [layer.name for layer in run.last.layers]
    for row, layer in zip(rows, run.last.layers):
        first = run.stds()[layer.name][0]
        std = "inf" if layer.forward.nonfinite else f"{layer.forward.std:.3g}"
        assert row[2] == std
        if std != "inf":
            assert row[3] == f"× {layer.forward.std / first:.3g}"
        assert row[6] == f"{layer.dead} of 32"
        assert row[7] == (str(layer.nonfinite) if layer.nonfinite else "")
    assert run.last.layers[2].dead >= 5
    assert any(row[7] for row in rows)


UNSEEN: dict[str, tuple[list[int], str]] = {
    "no layer ran": ([], "1 layer"),
    "an output without values": ([0], "Linear"),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_a_report_of_what_has_no_numbers(what: str, tmp_path: Path) -> None:
    model, run = nn.Linear(4, 4), Run()
    rows, said = UNSEEN[what]
    with watch(model, every=1, to=run) as w:
        for _ in range(2):
            for n in rows:
                model(torch.randn(n, 4))
            w.step()
    run.heat_map()
    run.report(tmp_path / "report.html")
    assert said in (tmp_path / "report.html").read_text()


def test_it_loads_nothing_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    run.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for tag, name, value in Page(text).attributes:
        assert tag != "script"
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png")), value
    assert not re.search(r"@import|url\((?!#)", text)
    hosts = re.findall(r"\w+://[^\"' )]+", text)
    assert set(hosts) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names
    assert "prefers-color-scheme: dark" in text
    for used in set(re.findall(r"var\((--\w+)\)", text)):
        assert len(re.findall(rf"{used}: ", text)) == 2  # once for each
    assert "#010203" not in text


def test_the_summary_is_short(run: Run) -> None:
    said = summary(run)
    assert said["steps"] == "4 measured, 0 to 6"
    assert said["layers"] == "9"
    assert said["dead units"].startswith(f"{sum(layer.dead for layer in run.last.layers)} of 288")
    assert said["inf or NaN"].startswith("from step 4 on, first in <b>&.12 (forward) and 2 others")
    assert "taken back" not in said
    with pytest.raises(ValueError, match="no step"):
        summary(Run())


def test_layers_that_moved_most_come_first() -> None:
    stds = {
        "still": [1.0, 1.0],
        "unknown": [None, None],
        "grew": [1.0, 10.0, 2.0],
        "shrank": [1.0, 0.01],
        "gone": [1.0, 0.0],
        "lost": [1.0, float("inf")],
    }
    assert worst(stds) == ["gone", "lost", "shrank", "grew", "still", "unknown"]
    assert worst(stds, 2) == ["gone", "lost"]


def test_what_formats_lose_and_kurtosis_are_shown_if_recorded(tmp_path: Path) -> None:
    model, path = nn.Sequential(*(nn.Linear(32, 32) for _ in range(9))), tmp_path / "stats.jsonl"
    with torch.no_grad():
        model[7].weight[0, 0] = 300.0  # too large for no format, and far out
        model[3].weight.mul_(1e-9)
        model[5].weight[:, 0] = 1e3
    formats = ["e4m3", "bfloat16", "float16"]
    with watch(model, every=1, to=path, formats=formats, histogram=True, higher=True) as w:
        model(torch.randn(8, 32))
        w.step()
    loaded = Run.load(path)
    loaded.report(tmp_path / "report.html")
    _, *rows = Page((tmp_path / "report.html").read_text()).rows
    assert loaded.last is not None
    e4m3 = [row for row in rows if row[0] == "e4m3"]
    assert e4m3[0] == ["e4m3", "3", "weight", "100%", "0%", "0%"]
    assert len(e4m3) == WORST
    found = {
        (layer.name, SIGNALS[name]): moments
        for layer in loaded.last.layers
        for name, moments in layer.signals().items()
    }
    said = [found[row[1], row[2]].formats["e4m3"] for row in e4m3]
    lost = [share.flushed + share.saturated for share in said]
    others = sorted(
        (m.formats["e4m3"] for m in found.values()), key=lambda s: -s.flushed - s.saturated
    )
    assert lost == [s.flushed + s.saturated for s in others[:WORST]]
    assert [row[4] for row in e4m3] == [f"{100 * share.saturated:.3g}%" for share in said]
    saturated = next(row for row in e4m3 if row[1:3] == ["5", "weight"])
    assert saturated[4] == f"{100 / 32:.3g}%"
    assert [row[1] for row in rows if row[0] == "bfloat16"] == ["nothing is flushed or saturated"]
    at = rows.index(["layer", "of the", "kurtosis", "absmean", "absmax"])
    assert rows[at + 1][:2] == ["7", "weight"]
    assert rows[at + 1][4] == "300"
    assert len(rows[at + 1 :]) == WORST


def test_what_is_to_be_said_of_many_layers_is_said_once(tmp_path: Path) -> None:
    model, run = mlp(), Run()
    with watch(model, gradients=True, every=1, to=run) as w, torch.no_grad():
        model(torch.randn(4, 32))
        w.step()
    run.report(tmp_path / "report.html")
    notes = re.findall("<li>(.*?)</li>", (tmp_path / "report.html").read_text())
    assert notes == [f"no gradient, it ran under no_grad: all {len(w.layers)} layers"]

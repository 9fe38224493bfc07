"""``report`` as a user sees it: a summary in 80 columns, a page, and a line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from fastinit.command import cli
from fastinit.variance.watch.watch import watch


@pytest.fixture
def stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with watch(model, every=1, to="stats.jsonl") as w:
        for _ in range(3):
            model(torch.randn(8, 4))
            w.step()
    return Path("stats.jsonl")


def test_a_page_and_what_is_in_it(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stats.read_bytes()
    stats.write_bytes(before + b'{"step": 3, ')  # by a crash
    assert cli.main(["report", "stats.jsonl"]) == 0
    assert cli.main(["report", "stats.jsonl", "--out", "other.html"]) == 0
    said = capsys.readouterr().out
    assert "3 measured, 0 to 2" in said
    assert said.splitlines()[-1].split() == ["page", "other.html"]
    assert max(map(len, said.splitlines())) <= 80
    assert "<h1>stats.jsonl</h1>" in Path("stats.html").read_text()
    assert Path("stats.html").read_text() == Path("other.html").read_text()
    assert stats.read_bytes() == before + b'{"step": 3, '


BAD = {
    "no file": (["nothing.jsonl"], "nothing.jsonl: there is no such file"),
    "another kind": (["loss.csv"], "loss.csv, line 1, is not what a watch writes"),
    "the same file": (["stats.jsonl", "--out", "./stats.jsonl"], "must end in .html"),
    "no page": (["stats.jsonl", "--out", "noted"], "noted is there and is not a page of HTML"),
    "a directory": (["stats.jsonl", "--out", "."], "is a directory"),
    "no directory": (["stats.jsonl", "--out", "no/report.html"], "there is no directory no"),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_said_in_a_line(
    kind: str, stats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("loss.csv").write_text("step,loss\n0,1\n")
    Path("noted").write_text("of mine")
    before = stats.read_bytes(), sorted(Path().iterdir())
    words, why = BAD[kind]
    assert cli.main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
    assert (stats.read_bytes(), sorted(Path().iterdir())) == before

"""The Python examples of the README and of docs/ run, each by itself, and the commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastinit import backends

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(page.name, example, id=f"{page.name}-{i}")
    for page in PAGES
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_example_runs(page: str, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    exec(compile(example, page, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", ["results", "lsuv", "digits"])
def test_results_are_the_saved_ones(name: str) -> None:
    readme = pytest.importorskip("benchmarks.readme", reason="not run from the checkout")
    assert readme.rendered(name) in README


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)\b`?", README))
    assert named & targets >= {"demo", "test", "bench", "slow", "crush", "lint"}

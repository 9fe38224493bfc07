"""The tests themselves: what reads as a tolerance is one, and a test that leaves a trace is seen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import shared

from fastinit.backends import choose as backends


def exact_before_approximate(source: str) -> Iterator[int]:
    """Lines with a == b == approx(c), where a and b have to be equal to the last digit."""
    tree = ast.parse(source)

    def approximate(node: ast.expr) -> bool:
        text = ast.unparse(node)
        return "approx(" in text or text in names

    names: set[str] = set()
    names |= {
        ast.unparse(target)
        for node in tree.body
        if isinstance(node, ast.Assign) and approximate(node.value)
        for target in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            sides = [node.left, *node.comparators]
            if any(map(approximate, sides)):
                yield node.lineno


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda f: f.name)
def test_no_equality_hides_in_front_of_a_tolerance(file: Path) -> None:
    assert list(exact_before_approximate(file.read_text())) == []


def test_an_equality_in_front_of_a_tolerance_is_seen() -> None:
    source = "NEAR = approx(1)\nassert a == NEAR\nassert a == b == NEAR\nassert a == approx(c) == d"
    assert list(exact_before_approximate(source)) == [3, 4]


def test_what_a_test_changes_for_those_behind_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = shared(), torch.get_num_threads()
    assert shared() == before
    torch.set_num_threads(threads + 1)
    torch.set_default_dtype(torch.float64)
    try:
        with monkeypatch.context() as patch, backends.backend("reference"):
            patch.setattr(torch.nn.init, "zeros_", torch.nn.init.ones_)
            patch.setenv("FASTINIT_ISA", "another than before")
            after = shared()
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert {what for what in before if before[what] != after[what]} == {
        "torch.get_num_threads()",
        "torch.get_default_dtype()",
        "torch.nn.init",
        "fastinit's forced backend",
        "the environment",
    }

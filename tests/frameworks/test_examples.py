"""The examples that need the real packages."""

from __future__ import annotations

import pytest
from test_docs import ROOT, restored
from test_docs import test_page_runs as run_page

__all__ = ["restored"]


@pytest.mark.frameworks
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", ["frameworks.md", "leaving-it-on.md", "missing-weights.md"])
def test_examples_run(name: str) -> None:
    run_page(ROOT / "docs" / name)

"""What is tested is what is pinned."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def _is_for_this_python(marker: str) -> bool:
    from packaging.markers import Marker

    return not marker or Marker(marker).evaluate()


@pytest.mark.frameworks
def test_the_pinned_packages_are_installed() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    for line in filter(None, lines):
        pinned, _, marker = line.partition(";")
        if _is_for_this_python(marker.strip()):
            name, _, version = pinned.partition("==")
            assert metadata.version(name) == version.strip(), name

"""What info() says of this installation."""

from __future__ import annotations

import json

import pytest
import torch
from same_bits import ISAS, isa

from fastinit.backends import installation
from fastinit.backends.choose import choose, native

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(not ISAS, reason="no native module")


def test_info_is_plain_and_names_what_was_chosen() -> None:
    said = installation.info()
    json.dumps(said)
    assert said["torch"] == torch.__version__
    assert said["threads"] == torch.get_num_threads()
    assert said["stream version"] == 1
    assert said["choice"]["cpu"].startswith(choose(CPU).name)


def test_info_names_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.metadata, "version", lambda name: f"{name} 9")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert installation.info()["triton"] == "triton 9"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert installation.info()["triton"] == "triton 9 (TRITON_INTERPRET)"

    def missing(name: str) -> str:
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "version", missing)
    assert "pip install triton" in installation.info()["triton"]


@needs_native
@pytest.mark.parametrize("build", ISAS)
def test_info_names_the_cpu_build_in_use(build: str) -> None:
    with isa(build):
        native = installation.info()["native"]
    assert native["CPU build in use"].split()[0] == build
    assert native["CPU builds"][build] == "usable"


def test_info_says_why_native_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "missing", "no compiler was found")
    said = installation.info()
    assert said["native"] == {"missing": "no compiler was found"}
    assert "not native: no compiler was found" in said["choice"]["cpu"]

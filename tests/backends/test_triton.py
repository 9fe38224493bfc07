"""Triton: when it serves.

That its values are the reference's bits, in every window and dtype, is in test_stream.py, where it
runs in the interpreter; what its compiler makes of the kernels is in test_triton_ptx.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from same_bits import TRITON

from fastinit.backends.choose import backend, triton
from fastinit.fills.operator import fill_
from fastinit.stream import laws

needs_triton = pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")


def test_on_the_cpu_it_serves_only_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensor = torch.zeros(3)
    with backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is not set"):
        fill_(tensor, laws.normal(), seed=1)
    assert tensor.equal(torch.zeros(3))


@needs_triton
def test_an_interpreter_that_would_give_other_bits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton.stream, "VERSION", "3.6.0")
    assert "rounds twice in fma" in (triton.serves(torch.device("cpu")) or "")
    assert triton.serves(torch.device("cuda")) is None  # compiled, it is one instruction


def test_a_machine_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastinit.backends.triton.fill", None)
    monkeypatch.delattr("fastinit.backends.triton.fill", raising=False)
    monkeypatch.delitem(triton.__dict__, "missing", raising=False)
    try:
        reason = triton.serves(torch.device("cuda"))
        assert reason is not None
        assert "pip install triton" in reason
    finally:
        monkeypatch.undo()
        triton.__dict__.pop("missing", None)


def test_a_triton_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("triton")
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "triton>=" + ".".join(map(str, triton.oldest)) in project
    monkeypatch.setattr(module, "__version__", "3.2.0")
    made = type(triton)()
    assert "triton 3.2.0 is too old: 3.6" in (made.serves(torch.device("cuda")) or "")

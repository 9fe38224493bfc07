"""Triton: when it serves, and what its compiler makes of the kernels for GPUs that are not here.

That its values are the reference's bits, in every window and dtype, is in test_stream.py, where it
runs in the interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import TRITON

from fastinit import laws
from fastinit.backends import backend, triton
from fastinit.ops import fill_

needs_triton = pytest.mark.skipif(not TRITON, reason="no triton, or no interpreter")


@pytest.fixture(scope="module", params=["", pytest.param("many", marks=pytest.mark.slow)])
def kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What tests/triton_ptx.py writes: in a process of its own, because this one interprets."""
    root = Path(__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(root),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    done = subprocess.run(
        [sys.executable, root / "tests/triton_ptx.py", *request.param.split()],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


def float32_operations(ptx: str) -> list[str]:
    names = "add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh"
    return re.findall(rf"\b((?:{names})\.[\w.]*f32x?2?)\b", ptx)


@needs_triton
@pytest.mark.compiler
def test_compiled_arithmetic_is_rounded_once(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        operations = float32_operations(kernel["ptx"])
        assert operations or kernel["law"] == "constant"
        for name in operations:
            assert ".rn" in name, (name, kernel["law"])
            assert not re.search(r"\.(approx|ftz|full|sat)\b", name)


@needs_triton
@pytest.mark.compiler
def test_the_compiler_neither_adds_nor_drops_an_operation(kernels: list[dict[str, Any]]) -> None:
    """What the four values of a block cost, counted in the text of triton_kernels.py."""
    expected = {
        "uniform": {"fma": 4},
        # For each of the two pairs 19 fma in normal_pair, and one more for each value.
        "normal": {"fma": 2 * 19 + 4, "mul": 2 * 4, "add": 2 * 1, "sqrt": 2},
        # For each value 16 fma in truncated_normal, 13 in tail_quantile, 1 + 1 for x and t.
        "truncated_normal": {"fma": 4 * 31, "mul": 4 * 1, "add": 4 * 3, "sub": 4 * 1, "sqrt": 4},
    }
    blocks = 2  # 256 for each program of 128 threads
    for kernel in kernels:
        if kernel["law"] == "constant":
            continue
        counted: dict[str, int] = {}
        for name in float32_operations(kernel["ptx"]):
            operation = name.split(".")[0]  # sm_100 has instructions for two values at once
            counted[operation] = counted.get(operation, 0) + (2 if name.endswith("x2") else 1)
        assert counted == {k: n * blocks for k, n in expected[kernel["law"]].items()}


@needs_triton
@pytest.mark.compiler
def test_compiled_kernels_spill_nothing(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["resources"]["LOCAL"] == 0
        assert ".local" not in kernel["ptx"]
        # The 64-bit divisions of a window with several outer dimensions are calls, with a frame.
        assert kernel["resources"]["STACK"] == 0 or kernel["window"] == "3-D"


@needs_triton
@pytest.mark.compiler
def test_whole_tensors_are_stored_in_vectors(kernels: list[dict[str, Any]]) -> None:
    widest = {"float32": "v4.b32", "float64": "v2.b64", "float16": "v2.b32", "bfloat16": "v2.b32"}
    for kernel in kernels:
        if kernel["window"] == "whole":
            assert f"st.global.{widest[kernel['dtype']]}" in kernel["ptx"], kernel["dtype"]
            moved = re.search(r"\b(ld|st)\.shared", kernel["ptx"])  # between threads
            assert not moved or kernel["dtype"] == "float64"  # 16 bytes are half a block there


@needs_triton
@pytest.mark.compiler
def test_a_key_is_no_reason_to_compile_again(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert len(set(kernel["hashes"])) == 1


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
    monkeypatch.setattr(triton.kernels, "VERSION", "3.6.0")
    assert "rounds twice in fma" in (triton.serves(torch.device("cpu")) or "")
    assert triton.serves(torch.device("cuda")) is None  # compiled, it is one instruction


def test_a_machine_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastinit.triton_kernels", None)
    monkeypatch.delattr("fastinit.triton_kernels", raising=False)
    monkeypatch.delitem(triton.__dict__, "missing", raising=False)
    try:
        reason = triton.serves(torch.device("cuda"))
        assert reason is not None
        assert "pip install triton" in reason
    finally:
        monkeypatch.undo()
        triton.__dict__.pop("missing", None)


def test_a_triton_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 brings triton 3.2, whose language lacks what the kernels use."""
    module = pytest.importorskip("triton")
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "triton>=" + ".".join(map(str, triton.oldest)) in project
    monkeypatch.setattr(module, "__version__", "3.2.0")
    made = type(triton)()
    assert "triton 3.2.0 is too old: 3.6" in (made.serves(torch.device("cuda")) or "")

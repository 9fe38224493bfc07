"""linear_moments: those of the output that is never built."""

from __future__ import annotations

import pytest
import torch
import warm
from torch.nn.functional import linear

from fastinit.statistics import product as module
from fastinit.statistics.tensor import moments


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_as_of_the_output(
    dtype: torch.dtype, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1000)  # several blocks both ways, with rests
    monkeypatch.setattr(module, "LEAST_COLUMNS", 30)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 37, 20, generator=generator).to(dtype)
    weight = torch.randn(71, 20, generator=generator).to(dtype)
    bias = torch.randn(71, generator=generator).to(dtype) if with_bias else None
    got, expected = module.linear_moments(x, weight, bias), moments(linear(x, weight, bias))
    # Products may be summed in another order: an ulp of single outputs.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-3)
    assert got.count == 3 * 37 * 71
    for field in ("mean", "var", "min", "max", "absmax"):
        assert getattr(got, field) == pytest.approx(getattr(expected, field), rel=tolerance)


def test_a_language_model_s_head_takes_little_memory() -> None:
    code = """
import resource, torch, fastinit
x, weight = torch.randn(1024, 64), torch.randn(65536, 64)  # the output has 256 MiB
fastinit.linear_moments(x[:8], weight[:8])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fastinit.linear_moments(x, weight)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = warm.run(code)
    assert int(done.stdout) < 64 * 1024, done.stderr  # KiB


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4, 5)), ValueError, r"weight must be \[out, 3\]"),
        ((torch.ones(2, 3), torch.ones(4, 3), torch.ones(3)), ValueError, r"bias must be \[4\]"),
        ((torch.ones(2, 3), torch.ones(4, 3).double()), TypeError, "weight must be torch.float32"),
        ((torch.ones(2, 3), [1.0]), TypeError, "weight must be a floating-point tensor"),
        ((torch.ones(2, 3, dtype=torch.int64), torch.ones(4, 3)), TypeError, "x must be a float"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module.linear_moments(*arguments)

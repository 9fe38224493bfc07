"""Every function writes every dtype of values, wherever these lie and whoever writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from same_bits import assert_values, bits, reference
from torch import Tensor, nn

from fastinit import init
from fastinit.backends.choose import backend, native
from fastinit.stream import laws
from fastinit.stream.rounding import wide

DTYPES = (*laws.WRITTEN, *laws.COMPLEX)
MATRICES = ("sparse_", "eye_")

FUNCTIONS: dict[str, Callable[[Tensor], object]] = {
    "normal_": lambda t: init.normal_(t, seed=1),
    "uniform_": lambda t: init.uniform_(t, seed=1),
    "trunc_normal_": lambda t: init.trunc_normal_(t, seed=1),
    "lecun_uniform_": lambda t: init.lecun_uniform_(t, seed=1),
    "orthogonal_": lambda t: init.orthogonal_(t, seed=1),
    "delta_orthogonal_": lambda t: init.delta_orthogonal_(t, seed=1),
    "sparse_": lambda t: init.sparse_(t, 0.5, seed=1),
    "eye_": init.eye_,
    "dirac_": init.dirac_,
    "constant_": lambda t: init.constant_(t, 0.5),
    "ones_": init.ones_,
    "zeros_": init.zeros_,
}


def turned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])


def every_other(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


def marked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = torch.zeros(shape, dtype=dtype)
    tensor.mine = 1  # type: ignore[attr-defined]
    return tensor


LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "plain": lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    "turned": turned,
    "of every other": every_other,
    "of later ones": lambda shape, dtype: torch.zeros(5, *shape, dtype=dtype)[3],
    "a parameter": lambda shape, dtype: nn.Parameter(torch.zeros(shape, dtype=dtype), False),
    "with an attribute": marked,
    "conjugated": lambda shape, dtype: torch.zeros(shape, dtype=dtype).conj(),
}
BLOCKS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    "in inference": torch.inference_mode,
    "by the reference": reference,
}
if native.module is not None:
    BLOCKS["by native"] = lambda: backend("native")


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_are_written(function: str, dtype: torch.dtype) -> None:
    shape = (6, 4) if function in MATRICES else (4, 3, 2)
    plain = torch.zeros(shape, dtype=dtype)
    FUNCTIONS[function](plain)
    for how, block in BLOCKS.items():
        with block():
            for layout, make in LAYOUTS.items():
                tensor = make(shape, dtype)
                FUNCTIONS[function](tensor)
                got = tensor.detach().resolve_conj()
                if how == "by the reference":
                    assert_values(*(t.to(wide(dtype)) for t in (got, plain)), function, layout)
                else:
                    assert bits(got).equal(bits(plain)), (layout, how)

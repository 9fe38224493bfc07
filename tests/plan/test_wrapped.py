"""Parameters over packed values and scales are known by what they hold, not by their class."""

from __future__ import annotations

import enum
from typing import Any

import pytest
import torch
from same_bits import bits
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from fastinit import Blocks, Fill, Plan, init

ROWS, COLUMNS = 8, 64


class Held(torch.Tensor):
    """A tensor over others, of any names."""

    def __new__(cls, **inner: torch.Tensor) -> Held:
        made: Held = torch.Tensor._make_wrapper_subclass(cls, (ROWS, COLUMNS), dtype=torch.bfloat16)
        return made

    def __init__(self, **inner: torch.Tensor) -> None:
        self.held = list(inner)
        vars(self).update(inner)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return self.held, None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default), func
        made = type(args[0])(**{name: getattr(args[0], name) for name in args[0].held})
        return return_and_correct_aliasing(func, args, kwargs or {}, made)


def eight(dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return torch.zeros(ROWS, COLUMNS, dtype=dtype)


def layer(**inner: torch.Tensor) -> nn.Linear:
    made = nn.Linear(COLUMNS, ROWS)
    made.weight = nn.Parameter(Held(**inner), requires_grad=False)
    return made


PLAN = Plan({"bias": Fill.constant(1.0), "weight": Fill.normal(std=0.02)}, seed=5)
KEY: dict[str, Any] = {"std": 0.02, "seed": 5, "name": "weight"}


@pytest.mark.parametrize("names", [("qdata", "scale"), ("_data", "_scale_inv")])
@pytest.mark.parametrize("shape", [(), (1,), (ROWS, 1)], ids=str)
def test_8_bit_floats_and_their_scale(names: tuple[str, str], shape: tuple[int, ...]) -> None:
    data, scale = eight(), torch.zeros(shape)
    PLAN.apply_(layer(**dict(zip(names, (data, scale)))))
    assert scale.eq(2.0**-11).all()  # the least above 6.7637 * 0.02 / 448
    assert bits(data).equal(bits(init.normal_(eight(), scale=2.0**-11, **KEY)))


class DType(enum.IntEnum):
    """TransformerEngine's, in part."""

    kFloat32 = 4
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8


class Bytes(Held):
    """As TransformerEngine 2.20's Float8Tensor: bytes, which are 8-bit floats by what it flattens to."""

    said = DType.kFloat8E5M2

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return self.held, {"nontensor_kwargs": {"fp8_dtype": self.said, "quantizer": None}}


@pytest.mark.parametrize("turned", [False, True])
def test_bytes_that_are_said_to_be_floats(monkeypatch: pytest.MonkeyPatch, turned: bool) -> None:
    """And a second copy of them, which has to be of the same values."""
    inner = {"_data": torch.zeros(ROWS, COLUMNS, dtype=torch.uint8), "_scale_inv": torch.zeros(1)}
    if turned:
        inner["_transpose"] = torch.zeros(COLUMNS, ROWS, dtype=torch.uint8)
    made = nn.Linear(COLUMNS, ROWS)
    made.weight = nn.Parameter(Bytes(**inner), requires_grad=False)
    PLAN.apply_(made)
    want = init.normal_(eight(torch.float8_e5m2), scale=2.0**-18, **KEY).view(torch.uint8)
    assert inner["_scale_inv"].eq(2.0**-18).all()  # the least above 6.7637 * 0.02 / 57344
    assert inner["_data"].equal(want)
    assert not turned or inner["_transpose"].equal(want.t())
    monkeypatch.setattr(Bytes, "said", DType.kFloat32)
    with pytest.raises(NotImplementedError, match="weight is a tensor of shape"):
        PLAN.apply_(made)
    assert inner["_data"].equal(want)


@pytest.mark.parametrize("format", ["mxfp8", "mxfp8_e5m2", "mxfp4", "nvfp4"])
def test_blocks(format: str) -> None:
    held = Blocks.empty((ROWS, COLUMNS), format)
    more = {} if held.tensor_scale is None else {"per_tensor_scale": held.tensor_scale}
    inputs = {"act_per_tensor_scale": torch.tensor(5.0)} if more else {}
    PLAN.apply_(layer(qdata=held.data, scale=held.scale, **more, **inputs))
    want = init.normal_(Blocks.empty((ROWS, COLUMNS), format), **KEY)
    assert held.values().equal(want.values())
    assert all(scale == 5.0 for scale in inputs.values())


@pytest.mark.parametrize("name", ["_tensor", "_data"])
@pytest.mark.parametrize("fill", [Fill.normal(), Fill.orthogonal().scaled(0.5)], ids=str)
def test_values_themselves(name: str, fill: Fill) -> None:
    held = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16)
    Plan({**PLAN, "weight": fill}, seed=5).apply_(layer(**{name: held}))
    plain = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16)
    Plan({"weight": fill}, seed=5).apply_(plain)
    assert bits(held).equal(bits(plain.weight.detach()))


@pytest.mark.parametrize(
    "inner",
    [
        {"_tensor": torch.zeros(ROWS, COLUMNS)},  # of another dtype than it says it is
        {"_tensor": torch.zeros(ROWS, COLUMNS).bfloat16(), "_precomputed_scale": torch.zeros(())},
        {"_data": eight(), "_scale": torch.zeros(())},  # which divides
        {"qdata": eight(), "scale": torch.zeros(()), "zero_point": torch.zeros(())},
        {"qdata": eight(), "scale": torch.zeros(2)},
        {"qdata": torch.zeros(ROWS, COLUMNS, dtype=torch.int8), "scale": torch.zeros(())},
        {"_data": eight(), "_scale_inv": torch.zeros(()), "_transpose": eight()},
    ],
    ids=lambda inner: " ".join(inner),
)
def test_what_may_stand_for_other_values_is_refused(inner: dict[str, torch.Tensor]) -> None:
    model = layer(**inner)
    bias = model.bias.clone()
    with pytest.raises(NotImplementedError, match=r"weight is a .*(over|operators of its own)"):
        PLAN.apply_(model)
    assert model.bias.equal(bias)
    assert not any(tensor.float().any() for tensor in inner.values())


def test_only_single_laws_are_written() -> None:
    plan = Plan({**PLAN, "weight": Fill.orthogonal()}, seed=5)
    model = layer(qdata=eight(), scale=torch.zeros(()))
    with pytest.raises(NotImplementedError, match="weight is stored as packed values and scales"):
        plan.apply_(model)

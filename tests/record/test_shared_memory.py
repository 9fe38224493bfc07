"""Parameters of one memory that overlap, and memory that is viewed in elements of another size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import Plan, init

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda m: m,
    "first rows": lambda m: m[:2],
    "middle rows": lambda m: m[2:4],
    "a column": lambda m: m[:, 1],
    "turned": lambda m: m.t(),
    "flat": lambda m: m.view(-1)[5:17],
}

ORDERS = [
    ("whole", "first rows"),
    ("first rows", "whole"),
    ("middle rows", "whole", "turned"),
    ("turned", "middle rows", "whole"),
    ("a column", "whole"),
    ("a column", "flat", "whole"),
    ("flat", "a column", "turned"),
    ("turned", "flat"),
    ("middle rows", "first rows"),
]


def _build(order: tuple[str, ...]) -> nn.Module:
    """Parameters that are views of one memory [6, 4], all of which is drawn at once."""
    model, memory = nn.Module(), torch.empty(6, 4)
    for name in order:
        model.register_parameter(name, nn.Parameter(VIEWS[name](memory)))
    nn.init.normal_(memory)
    return model


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_the_first_that_has_an_element_numbers_it(order: tuple[str, ...]) -> None:
    """Of parameters in the order of the model; in memory, in a plan, and in a plan that was saved."""
    with fastinit.deferred(seed=2):
        model = _build(order)
        other = _build(order)
    plan = fastinit.recorded_plan(model)
    fastinit.materialize_(model)
    expected = torch.full((6, 4), torch.nan)
    for name in reversed(order):
        view = VIEWS[name](expected)
        view.copy_(init.normal_(torch.empty(view.shape), seed=2, name=name))
    apart = nn.Module()
    for name in order:
        empty = torch.empty(VIEWS[name](expected).shape)
        apart.register_parameter(name, nn.Parameter(empty))
    fastinit.fill_missing_(other)
    for written in (model, plan.apply_(apart), other):
        for name in order:
            assert torch.equal(written.get_parameter(name), VIEWS[name](expected)), name


def test_a_plan_of_rows_that_are_named_first_can_be_saved() -> None:
    with fastinit.deferred(seed=2):
        plan = fastinit.recorded_plan(_build(("middle rows", "whole")))
    assert Plan.from_json(plan.to_json()) == plan
    assert [part.fill.stream for part in plan["whole"].parts] == ["middle rows"]


def test_what_was_drawn_before_has_no_part_in_the_numbers() -> None:
    for earlier in (lambda m: m[:12], lambda m: m[7:], lambda m: m[::2], lambda m: m[3:20:3]):
        with fastinit.deferred(seed=4):
            model, memory = nn.Module(), torch.empty(25)
            model.w = nn.Parameter(memory[2:22].view(5, 4).t())
            nn.init.normal_(earlier(memory))
            nn.init.normal_(memory)
            nn.init.uniform_(model.w)
        fastinit.materialize_(model)
        assert torch.equal(model.w, init.uniform_(torch.empty(4, 5), seed=4, name="w"))


def test_a_range_that_ends_within_a_row_has_the_numbers_of_the_indices() -> None:
    with fastinit.deferred(seed=4):
        model, memory = nn.Module(), torch.empty(1000)
        model.w = nn.Parameter(memory.view(20, 50).t())
        nn.init.uniform_(memory)
        nn.init.normal_(memory[5:777])
    fastinit.materialize_(model)
    expected = torch.empty(20, 50).t()
    init.uniform_(expected, seed=4, name="w")
    normal = init.normal_(torch.empty(50, 20), seed=4, name="w").t().flatten()
    expected.t().flatten()[5:777] = normal[5:777]
    assert torch.equal(model.w, expected)


def _normal(view: Tensor) -> None:
    nn.init.normal_(view)


def _zero(view: Tensor) -> None:
    with torch.no_grad():
        view.zero_()


OTHER_SIZES: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor], bool]] = {
    "real parts": (torch.complex64, lambda m: m.real, False),
    "imaginary parts": (torch.complex64, lambda m: m.imag, False),
    "half of all parts": (torch.complex64, lambda m: torch.view_as_real(m)[:6], False),
    "all parts": (torch.complex64, torch.view_as_real, True),
    "float32 of float64, half": (torch.float64, lambda m: m.view(torch.float32)[:12], False),
    "float32 of float64": (torch.float64, lambda m: m.view(torch.float32), True),
    "float64 of float32": (torch.float32, lambda m: m.view(torch.float64), True),
    "float64 of float32, but one": (torch.float32, lambda m: m.view(torch.float64)[1:], False),
    "bfloat16 of float32, half": (torch.float32, lambda m: m.view(torch.bfloat16)[:12], False),
    "each second bfloat16": (torch.float32, lambda m: m.view(torch.bfloat16)[::2], False),
    "bytes, but one": (torch.float32, lambda m: m.view(torch.uint8)[:-1], False),
    "bytes": (torch.float32, lambda m: m.view(torch.uint8), True),
}


@pytest.mark.parametrize("case", OTHER_SIZES)
def test_what_was_written_is_counted_in_bytes(case: str) -> None:
    dtype, view, is_all = OTHER_SIZES[case]
    with fastinit.deferred(seed=5):
        model, memory = nn.Module(), torch.empty(12, dtype=dtype)
        model.w = nn.Parameter(memory)
        of = view(memory)
        (_normal if of.is_floating_point() else _zero)(of)
    if is_all:
        assert not fastinit.materialize_(model).w.is_meta
    else:
        with pytest.raises(ValueError, match="left unwritten, at least in part: parameter w"):
            fastinit.materialize_(model)


def test_a_view_of_another_dtype_has_its_numbers_whoever_has_the_memory_too() -> None:
    def build(is_held: bool) -> nn.Module:
        with fastinit.deferred(seed=5):
            model, memory = nn.Module(), torch.empty(3, 4, dtype=torch.complex64)
            model.w = nn.Parameter(torch.view_as_real(memory))
            nn.init.normal_(model.w)
            if is_held:
                model.register_buffer("held", memory)
        return fastinit.materialize_(model)

    assert torch.equal(build(True).w, build(False).w)


WRITTEN_OVER: dict[str, Callable[[Tensor], object]] = {
    "a copy of what nobody wrote": lambda w: w.data.copy_(torch.empty(3, 4)),
    "rows of it": lambda w: w.data[1:].copy_(torch.empty(2, 4)),
    "a sum with it": lambda w: torch.add(torch.empty(3, 4), 1.0, out=w.data),
}


@pytest.mark.parametrize("before", WRITTEN_OVER)
def test_what_is_written_over_need_not_have_been_written(before: str) -> None:
    for view in (lambda m: m[:12].view(3, 4), lambda m: m[4:16].view(4, 3).t()):
        with fastinit.deferred(seed=6):
            model = nn.Module()
            model.w = nn.Parameter(view(torch.empty(20)))
            WRITTEN_OVER[before](model.w)
            nn.init.normal_(model.w)
        fastinit.materialize_(model)
        assert torch.equal(model.w, init.normal_(torch.empty(3, 4), seed=6, name="w"))


def test_a_buffer_of_what_nobody_wrote_is_refused() -> None:
    with fastinit.deferred(seed=1):
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(2, 3))
        model.register_buffer("b", model.w.detach() * 1)
        nn.init.normal_(model.w)
    for write in (fastinit.materialize_, fastinit.recorded_plan):
        with pytest.raises(ValueError, match=r"left unwritten, .*: buffer b"):
            write(model)
    assert model.w.is_meta

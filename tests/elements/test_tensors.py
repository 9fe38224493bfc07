"""The gate: each public function with each kind of tensor. None may crash, or be silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensor_kinds import FREED, KINDS, Kind, data, quietly, readable, two_ranks
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Plan, init
from fastinit.backends.choose import native
from fastinit.elements import tensors
from fastinit.fills import operator as ops
from fastinit.stream import laws

WRITERS: dict[str, Callable[[Tensor], object]] = {
    "uniform_": lambda t: init.uniform_(t, seed=1),
    "normal_": lambda t: init.normal_(t, seed=1),
    "trunc_normal_": lambda t: init.trunc_normal_(t, seed=1),
    "xavier_normal_": lambda t: init.xavier_normal_(t, seed=1),
    "kaiming_uniform_": lambda t: init.kaiming_uniform_(t, seed=1),
    "variance_scaling_": lambda t: init.variance_scaling_(t, seed=1),
    "lecun_normal_": lambda t: init.lecun_normal_(t, seed=1),
    "fill_many_": lambda t: ops.fill_many_([ops.Request(t, laws.normal(), 1)]),
    "Plan.apply_": lambda t: planned(t),
}
# What stands for a whole matrix, or goes through torch's own operators.
WHOLE: dict[str, Callable[[Tensor], object]] = {
    "orthogonal_": lambda t: init.orthogonal_(t, seed=1),
    "sparse_": lambda t: init.sparse_(t, 0.5, seed=1),
    "eye_": init.eye_,
    "zeros_": init.zeros_,
    "ones_": init.ones_,
    "constant_": lambda t: init.constant_(t, 2.0),
}
READERS: dict[str, Callable[[Tensor], object]] = {
    "moments": lambda t: fastinit.moments(t),
    "moments by channel": lambda t: fastinit.moments(t, dim=0),
    "moments_many": lambda t: fastinit.moments_many([t, t]),
}
PRODUCTS: dict[str, Callable[[Tensor], object]] = {
    "x": lambda t: fastinit.linear_moments(t, torch.ones(3, 6)),
    "weight": lambda t: fastinit.linear_moments(torch.ones(3, 6), t),
    "bias": lambda t: fastinit.linear_moments(torch.ones(3, 2), torch.ones(4, 2), t),
}


def planned(tensor: Tensor) -> None:
    module = nn.Module()
    module.register_parameter("w", None)
    # Not by assignment: a value inside a transform is no Parameter, but it has to be refused as one.
    module._parameters["w"] = tensor  # type: ignore[assignment]
    Plan({"w": Fill.normal(0.0, 1.0)}, seed=1).apply_(module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", WRITERS)
def test_random_functions(function: str, kind: str) -> None:
    expected, write = KINDS[kind], WRITERS[function]
    if (function, kind) == ("Plan.apply_", "meta"):  # it asks where the values shall be
        expected = Kind(expected.call, ValueError, None, "device='cpu'")
    if expected.write is not None:
        with pytest.raises(expected.write, match=expected.text):
            quietly(kind, write)
        return

    def check(tensor: Tensor) -> None:
        before = None if expected.left else readable(tensor)
        write(tensor)
        if before is None:
            return
        plain = torch.empty(tensor.shape)
        write(plain)
        after = readable(tensor)
        assert not after.equal(before)
        if kind != "sharded":  # of which this rank has the first rows
            assert after.equal(plain)
        else:
            assert after.equal(plain[: len(after)])

    quietly(kind, check)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", WHOLE)
def test_functions_of_whole_matrices(function: str, kind: str) -> None:
    """They write it as a plain tensor, or raise; and torch's operators are not given freed memory."""
    expected = KINDS[kind]

    def check(tensor: Tensor) -> None:
        plain = torch.empty(tensor.shape)
        WHOLE[function](tensor)
        if not expected.left and expected.read is None and kind not in ("sharded", "replicated"):
            WHOLE[function](plain)
            torch.testing.assert_close(readable(tensor), plain)

    if expected.text == FREED:
        with pytest.raises(RuntimeError, match=FREED):
            quietly(kind, check)
        return
    try:
        quietly(kind, check)
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        assert expected.write is not None or kind in ("sharded", "replicated")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", READERS)
def test_moments(function: str, kind: str) -> None:
    expected, read = KINDS[kind], READERS[function]
    if expected.read is not None:
        with pytest.raises(expected.read, match=expected.text):
            quietly(kind, read)
        return

    def check(tensor: Tensor) -> None:
        if kind == "sharded":  # all of it takes its other rank too: test_across.py
            tensor = tensor.to_local()  # type: ignore[operator]
        got, there = read(tensor), read(readable(tensor))
        assert repr(got) == repr(there)
        assert fastinit.moments(tensor).max == readable(tensor).max().item()

    quietly(kind, check)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", PRODUCTS)
def test_moments_of_products(argument: str, kind: str) -> None:
    expected, read = KINDS[kind], PRODUCTS[argument]
    if is_dtensor(kind):
        expected = Kind(expected.call, None, NotImplementedError, "DTensor", within=two_ranks)
    elif kind == "negated, of one element":
        expected = Kind(expected.call, None, ValueError, "must be", within=expected.within)
    elif argument == "bias" and expected.read is None:  # two-dimensional, which is looked at last
        expected = Kind(expected.call, None, ValueError, "bias must be", within=expected.within)
    if expected.read is not None:
        with pytest.raises(expected.read, match=expected.text):
            quietly(kind, read)
        return

    def check(tensor: Tensor) -> None:
        assert repr(read(tensor)) == repr(read(readable(tensor)))

    quietly(kind, check)


def is_dtensor(kind: str) -> bool:
    return KINDS[kind].within is two_ranks and kind != "a result to come"


@pytest.mark.parametrize("many", [9, 12])
def test_moments_of_many_dimensions(many: int) -> None:
    """More that cannot be merged than a backend reads at once: read in parts."""
    every_other = (slice(None, None, 2),) * many
    x = torch.randn((3,) * many, generator=torch.Generator().manual_seed(0))[every_other]
    got, expected = fastinit.moments(x), fastinit.moments(x.contiguous())
    assert got.count == expected.count
    assert (got.min, got.max, got.zeros) == (expected.min, expected.max, expected.zeros)
    # Sums in another order: float64's rounding, some hundred times.
    assert float(got.mean) == pytest.approx(float(expected.mean), rel=1e-12)
    assert float(got.var) == pytest.approx(float(expected.var), rel=1e-12)
    by_channel = fastinit.moments(x, dim=1)
    torch.testing.assert_close(by_channel.mean, fastinit.moments(x.contiguous(), dim=1).mean)


@pytest.mark.skipif(native.module is None, reason="without the native module")
@pytest.mark.parametrize(
    "layout",
    ["to_sparse", "to_sparse_csr", "to_sparse_csc", "to_sparse_bsr", "to_sparse_bsc", "to_mkldnn"],
)
def test_other_layouts_have_no_address(layout: str) -> None:
    block = ((2, 2),) if layout.endswith(("bsr", "bsc")) else ()
    for plain in (data(), data()[1:]):
        assert tensors.plain_cpu_address(plain) == plain.data_ptr()
    assert tensors.plain_cpu_address(getattr(data(), layout)(*block)) == 0


def test_a_fake_model_is_planned_and_left_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(6, 4)
        Plan({"weight": Fill.normal(0.0, 1.0), "bias": Fill.constant(0.0)}, seed=0).apply_(model)
        assert init.xavier_normal_(model.weight) is model.weight


def test_what_has_no_shape_yet_is_named() -> None:
    with pytest.raises(ValueError, match="is uninitialised"):
        fastinit.moments(nn.LazyLinear(3).weight)


def test_a_generator_that_is_none() -> None:
    for tensor in (torch.empty(3), data().t()[1:]):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, but got 7"):
            init.normal_(tensor, generator=7)  # type: ignore[arg-type]

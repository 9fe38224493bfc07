"""The gate: each public function with each kind of tensor. None may crash, or be silently wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import Fill, Plan, checkpoint, init
from fastinit.backends import choose as backends
from fastinit.backends.choose import native
from fastinit.backends.contract import Backend
from fastinit.elements import tensors
from fastinit.fills import operator as ops
from fastinit.fills.at_hand import at_hand
from fastinit.statistics.reading import MAX_DIMS
from fastinit.stream import laws
from fastinit.variance.lsuv.affine import LSUVError

SHAPE = (4, 6)


class Plain(Tensor):
    """A subclass that leaves operators alone: its memory is its own."""


class Own(Tensor):
    """A subclass with memory and with operators of its own."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class Watching(TorchDispatchMode):
    """A mode that lets everything pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def data() -> Tensor:
    return torch.linspace(-1.0, 2.0, 24).view(SHAPE)


def resized(kept: int) -> Tensor:
    tensor = data()
    tensor.untyped_storage().resize_(kept)
    return tensor


def view_of_freed() -> Tensor:
    tensor = data()
    view = tensor[1:, 2:]
    tensor.untyped_storage().resize_(0)
    return view


def waiting() -> Tensor:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return AsyncCollectiveTensor(data())


def sharded(placement: str, make: Callable[[], Tensor] = lambda: data()) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh

    placements = {"shard": Shard(0), "replicate": Replicate(), "partial": Partial()}
    mesh = init_device_mesh("cpu", (2,))
    return DTensor.from_local(make(), mesh, [placements[placement]], run_check=False)


@contextmanager
def two_ranks() -> Iterator[None]:
    """A process group of two, whose other rank is never asked."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(SHAPE)


def inside(transform: Callable[..., Any]) -> Callable[[Callable[[Tensor], object]], None]:
    """Calls a function with a tensor that stands for a value inside a transform."""

    def call(function: Callable[[Tensor], object]) -> None:
        def body(x: Tensor) -> Tensor:
            function(x)
            return x.sum()

        transform(body)

    return call


def directly(make: Callable[[], Tensor]) -> Callable[[Callable[[Tensor], object]], None]:
    return lambda function: (function(make()), None)[1]


class Kind:
    """One kind of tensor, and what is to come of it.

    Args:
        call: hands a tensor of the kind to a function.
        write, read: the error that writing and reading it is, None where it works.
        text: of the error.
        left: writing leaves it alone: it has no values.
    """

    def __init__(
        self,
        call: Callable[[Callable[[Tensor], object]], None],
        write: type[Exception] | None,
        read: type[Exception] | None,
        text: str = "",
        left: bool = False,
        within: Callable[[], Any] = nullcontext,
    ) -> None:
        self.call, self.write, self.read, self.text = call, write, read, text
        self.left, self.within = left, within


MISSING, FREED = NotImplementedError, "elements without memory"
KINDS = {
    "plain": Kind(directly(data), None, None),
    "parameter": Kind(directly(lambda: nn.Parameter(data())), None, None),
    "subclass": Kind(directly(lambda: data().as_subclass(Plain)), None, None),
    "lazily cloned": Kind(directly(lambda: torch._lazy_clone(data())), None, None),
    "negated": Kind(directly(lambda: torch.complex(data(), -data()).conj().imag), None, None),
    "negated, of one element": Kind(
        directly(lambda: torch.complex(data(), -data()).conj().imag[:1, :1]), None, None
    ),
    "strided": Kind(directly(lambda: data().repeat(2, 2)[::2, ::2]), None, None),
    "a result to come": Kind(directly(waiting), None, None, within=two_ranks),
    "under a mode": Kind(directly(data), None, None, within=Watching),
    "sharded": Kind(directly(lambda: sharded("shard")), None, None, within=two_ranks),
    "replicated": Kind(directly(lambda: sharded("replicate")), None, None, within=two_ranks),
    "partial": Kind(
        directly(lambda: sharded("partial")), MISSING, MISSING, "Partial", within=two_ranks
    ),
    "sharded and fake": Kind(
        directly(lambda: sharded("shard", fake)),
        None,
        ValueError,
        "FakeTensor",
        left=True,
        within=two_ranks,
    ),
    "freed": Kind(directly(lambda: resized(0)), RuntimeError, RuntimeError, FREED),
    "partly freed": Kind(directly(lambda: resized(40)), RuntimeError, RuntimeError, FREED),
    "view of freed": Kind(directly(view_of_freed), RuntimeError, RuntimeError, FREED),
    "zero tensor": Kind(
        directly(lambda: torch._efficientzerotensor(SHAPE)), MISSING, MISSING, "immutable zero"
    ),
    "meta": Kind(directly(lambda: data().to("meta")), None, ValueError, "is on meta", left=True),
    "fake": Kind(directly(fake), None, ValueError, "FakeTensor", left=True),
    "sparse": Kind(directly(lambda: data().to_sparse()), MISSING, MISSING, "layout"),
    "sparse rows": Kind(directly(lambda: data().to_sparse_csr()), MISSING, MISSING, "layout"),
    "mkldnn": Kind(directly(lambda: data().to_mkldnn()), MISSING, MISSING, "layout"),
    "nested": Kind(
        directly(lambda: torch.nested.nested_tensor([data(), data()])), MISSING, MISSING, "nested"
    ),
    "jagged": Kind(
        directly(lambda: torch.nested.nested_tensor([data(), data()], layout=torch.jagged)),
        MISSING,
        MISSING,
        "nested",
    ),
    "masked": Kind(
        directly(lambda: masked_tensor(data(), data() > 0)), MISSING, MISSING, "MaskedTensor"
    ),
    "two tensors": Kind(directly(lambda: TwoTensor(data(), data())), MISSING, MISSING, "TwoTensor"),
    "own operators": Kind(
        directly(lambda: Tensor._make_subclass(Own, data())), MISSING, MISSING, "Own"
    ),
    "in functionalize": Kind(
        inside(lambda f: torch.func.functionalize(f)(data())),
        MISSING,
        MISSING,
        "torch.func transform",
    ),
    "in vmap": Kind(
        inside(lambda f: torch.vmap(f)(data()[None])), MISSING, MISSING, "torch.func transform"
    ),
    "in grad": Kind(
        inside(lambda f: torch.func.grad(f)(data())), MISSING, MISSING, "torch.func transform"
    ),
    "in jvp": Kind(
        inside(lambda f: torch.func.jvp(f, (data(),), (data(),))),
        MISSING,
        MISSING,
        "torch.func transform",
    ),
}

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


def quietly(kind: str, function: Callable[[Tensor], object]) -> None:
    with warnings.catch_warnings(), KINDS[kind].within():
        warnings.simplefilter("ignore")  # torch's, of prototypes and deprecations
        KINDS[kind].call(function)


def readable(tensor: Tensor) -> Tensor:
    return tensors.values(tensor).clone()


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


class Gives(nn.Module):
    """A layer whose output is what it is told."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.tensor = [tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.tensor[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_model_runs_whatever_its_layers_give(kind: str) -> None:
    def run(tensor: Tensor) -> None:
        model = nn.Sequential(Gives(tensor), nn.Identity())
        with fastinit.watch(model, layers=Gives, gradients=True) as seen:
            assert model(torch.ones(1)) is tensor
        if KINDS[kind].read is None:
            assert seen.layers[0].forward.max == readable(tensor).max().item()
        else:
            assert KINDS[kind].text in seen.missing["0"]
            assert KINDS[kind].text in " ".join(seen.table().split())

    quietly(kind, run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_weight_of_any_kind(kind: str) -> None:
    """What its weight is decides what is said of it, not whether the model runs."""

    layer, x = nn.Linear(6, 4), torch.ones(1, 6)

    def run(tensor: Tensor) -> None:
        with fastinit.watch(nn.Sequential(layer)) as seen:
            layer(x)
            target = seen._targets[0]
            assert target.layer is not None
            target.layer = replace(target.layer, weight_in=tensor)  # type: ignore[arg-type]
        found = seen.layers[0] if seen.layers else None
        if found is None:  # inside a transform that makes everything its own
            assert "torch.func transform" in seen.missing["0"]
        elif KINDS[kind].read is None:
            assert found.weight is not None
        else:
            assert KINDS[kind].text in found.note

    quietly(kind, run)


@pytest.mark.parametrize("kind", KINDS)
def test_lsuv_names_the_layer_and_what_it_gives(kind: str) -> None:
    def run(tensor: Tensor) -> None:
        fastinit.lsuv_(nn.Sequential(Gives(tensor)), torch.ones(1), layers=Gives, max_iter=1)

    if kind.endswith("one element"):
        with pytest.raises(LSUVError, match="fewer than two values"):
            quietly(kind, run)
    elif KINDS[kind].read is not None:
        with pytest.raises((LSUVError, NotImplementedError), match=KINDS[kind].text):
            quietly(kind, run)
    else:
        quietly(kind, run)


def is_dtensor(kind: str) -> bool:
    return KINDS[kind].within is two_ranks and kind != "a result to come"


def test_a_call_that_cannot_be_measured_is_said_beside_those_that_are() -> None:
    layer = Gives(data())
    with fastinit.watch(nn.Sequential(layer), layers=Gives) as seen:
        layer(data())
        layer.tensor[0] = resized(0)
        layer(data())
    assert seen.layers[0].calls == 1
    assert FREED in seen.layers[0].note


def test_a_failing_backend_ends_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory\nand more")

    model = nn.Sequential(nn.Linear(6, 4))
    with fastinit.watch(model, gradients=True) as seen:
        monkeypatch.setattr(backends, "native_is_chosen", lambda: False)  # no short way
        monkeypatch.setattr(backends, "choose_measuring", fail)
        model(data()).sum().backward()
        monkeypatch.undo()
    assert "RuntimeError: out of memory" in seen.missing["0"]


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


def marked(of: Callable[[], Tensor] = data) -> Tensor:
    tensor = of()
    tensor.said = "by somebody"  # type: ignore[attr-defined]
    return tensor


def second_chunk() -> Tensor:
    """Of a parameter, after the first one was written: torch would not say whether it is a leaf."""
    first, second = nn.Parameter(data()).chunk(2)
    init.zeros_(first)
    return second


def inferred() -> Tensor:
    with torch.inference_mode():
        return data()


AT_HAND: dict[str, tuple[Callable[[], object], bool]] = {
    "rows of a parameter": (lambda: nn.Parameter(data())[1:3], True),
    "a chunk, another being written": (second_chunk, True),
    "rows, without a gradient": (lambda: nn.Parameter(data()).detach()[1:], True),
    "integers": (lambda: data().long(), True),
    "no elements": (lambda: data()[:0], False),
    "what a mark was left on, detached": (lambda: marked().detach(), True),
    "what a mark was left on": (marked, False),
    "a parameter with a mark": (lambda: marked(lambda: nn.Parameter(data())), False),
    "a view of what has a mark": (lambda: marked(lambda: nn.Parameter(data()))[1:], False),
    "a result": (lambda: nn.Parameter(data()) * 2, False),
    "a view of a result": (lambda: (nn.Parameter(data()) * 2)[1:], False),
    "a parameter that became a result": (
        lambda: nn.Parameter(data(), False).copy_(nn.Parameter(data())),
        False,
    ),
    "columns": (lambda: data()[:, :2], False),
    "expanded": (lambda: data()[:1].expand(SHAPE), False),
    "made for inference": (inferred, False),
    "no tensor": (lambda: [1.0], False),
    "its class": (lambda: Tensor, False),
    "an array": (lambda: data().numpy(), False),
    "Blocks": (lambda: fastinit.Blocks.empty((4, 32), "mxfp8"), False),
}


@pytest.mark.skipif(native.module is None, reason="without the native module")
@pytest.mark.parametrize("name", AT_HAND)
def test_what_is_at_hand(name: str) -> None:
    make, wanted = AT_HAND[name]
    tensor = make()
    address = at_hand(tensor)
    assert address == (tensor.data_ptr() if wanted else 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_are_at_hand(kind: str) -> None:
    """Nothing that has to be asked for more; without the native module nothing is."""
    plain = native.module is not None and kind in ("plain", "parameter", "lazily cloned")

    def check(tensor: Tensor) -> None:
        assert bool(at_hand(tensor)) is plain

    quietly(kind, check)


@pytest.mark.skipif(native.module is None, reason="without the native module")
def test_the_native_module_trusts_nobody() -> None:
    module = native.module
    assert module is not None
    assert module.MAX_DIMS == MAX_DIMS  # which stands in Python too, for what has no native module
    fill = native.prepared(laws.normal(), torch.float32)
    with pytest.raises(ValueError, match="24 elements has no address"):
        module.fill_contiguous(fill, 0, 24, 0, 0, 1)
    with pytest.raises(ValueError, match="24 elements has no address"):
        module.fill_many([(fill, 0, 0, 0, 0, (4, 6), (6, 1), (6, 1))], 1)
    with pytest.raises(ValueError, match="has no address"):
        module.Readings([(0, 0, (4, 6), (6, 1), False, 8)])
    with pytest.raises(ValueError, match="has no address"):
        module.Readings([(0, 8, (4, 6), (6, 1), False, 0)])
    module.fill_contiguous(fill, 0, 0, 0, 0, 1)  # nothing to write


def test_no_way_in_bypasses_a_registered_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Backend):
        name = "mine"
        wrote = 0

        def serves(self, device: torch.device) -> str | None:
            return None

        def fill_many(self, writes: Any) -> None:
            self.wrote += len(writes)

    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    mine = Mine()
    backends.register(mine, before="native")
    init.normal_(torch.empty(4), seed=0)
    ops.fill_many_([ops.Request(torch.empty(4), laws.normal(), 0)])
    init.orthogonal_(torch.empty(4, 4), seed=0)
    assert mine.wrote == 3


def test_a_fake_model_is_planned_and_left_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(6, 4)
        Plan({"weight": Fill.normal(0.0, 1.0), "bias": Fill.constant(0.0)}, seed=0).apply_(model)
        assert init.xavier_normal_(model.weight) is model.weight


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("how", ["FSDP2", "tensor parallel"])
def test_a_sharded_model_is_watched(how: str) -> None:
    """Its weights are DTensors and its outputs asynchronous results."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = two_layers()
    with two_ranks():
        if how == "FSDP2":
            fully_shard(model[0])
            fully_shard(model)
        else:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
        with fastinit.watch(model, gradients=True) as seen:
            model(data()).square().mean().backward()
    assert [layer.name for layer in seen.layers] == ["0", "2"]
    for layer in seen.layers:
        assert layer.weight is not None
        assert layer.backward is not None
        assert layer.note == "this rank's part"


def test_lsuv_of_a_row_wise_layer() -> None:
    """Each rank sees the whole output, an asynchronous result, and scales its part of the weight."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    model = two_layers()
    with two_ranks():
        parallelize_module(model, init_device_mesh("cpu", (2,)), {"2": RowwiseParallel()})
        with torch.no_grad():  # what this group scatters is whatever was in memory
            model[2].weight.to_local().uniform_(-1, 1)
            model[2].bias.zero_()
        x, before = data().repeat(1, 2)[:, :8], model[2].weight.to_local().detach().clone()
        result = fastinit.lsuv_(model[2], x[:, :4], layers=[""])
        scaled = before * result.layers[0].scale
        torch.testing.assert_close(model[2].weight.to_local().detach(), scaled)
    assert result.layers[0].std == pytest.approx(1.0)


class Bent(nn.Module):
    """Not affine in its weight, a DTensor, so that it is repeated with the weight scaled."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x @ self.weight.full_tensor())


def test_lsuv_repeats_a_layer_whose_weight_is_a_dtensor() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    before = torch.randn(6, 6)
    with two_ranks():
        weight = distribute_tensor(before.clone(), init_device_mesh("cpu", (2,)), [Replicate()])
        model = nn.Sequential(Bent(weight))
        result = fastinit.lsuv_(model, data(), layers=Bent)
        assert model(data()).var().item() == pytest.approx(1.0, abs=0.02)  # tol
        scaled = before * result.layers[0].scale
        torch.testing.assert_close(model[0].weight.to_local().detach(), scaled)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_is_exported_also_while_it_is_watched(strict: bool) -> None:
    model = two_layers()
    with fastinit.watch(model) as seen:
        program = torch.export.export(model, (data(),), strict=strict)
    torch.testing.assert_close(program.module()(data()), model(data()))
    assert "traced" in seen.missing["0"]


def _freed(model: nn.Module, name: str) -> nn.Module:
    model.state_dict(keep_vars=True)[name].untyped_storage().resize_(0)
    return model


def _recorded_norm() -> tuple[nn.Module, Plan]:
    with fastinit.deferred():
        model = nn.BatchNorm1d(4)
    plan = fastinit.recorded_plan(model)
    return _freed(model.to_empty(device="cpu"), "running_var"), plan


def _apply(**options: Any) -> None:
    model, plan = _recorded_norm()
    plan.apply_(model, **options)


def _linear() -> nn.Module:
    return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (lambda at: fastinit.transfer_scale_(_freed(_linear(), "weight"), _linear(), 2), "layer.w"),
        (
            lambda at: fastinit.transfer_scale_(_freed(_linear(), "bias"), _linear(), 2),
            "layer.bias",
        ),
        (
            lambda at: fastinit.transfer_scale_(_linear(), _freed(_linear(), "weight"), 2),
            "following",
        ),
        (lambda at: _apply(), "running_var"),
        (lambda at: _apply(buffers="restore"), "running_var"),
        (lambda at: checkpoint.write(_freed(_linear(), "weight"), at), "weight"),
        (
            lambda at: checkpoint.write(_freed(nn.BatchNorm1d(4), "running_var"), at),
            "running",
        ),
    ],
)
def test_what_is_done_with_a_model_whose_memory_was_freed(
    use: Any, named: str, tmp_path: Any
) -> None:
    """What torch's own operators read and write asks the gate too."""
    with pytest.raises(RuntimeError, match=rf"^{named}.* has elements without memory"):
        use(tmp_path / "made")


def test_what_has_no_shape_yet_is_named() -> None:
    with pytest.raises(ValueError, match="is uninitialised"):
        fastinit.moments(nn.LazyLinear(3).weight)


def test_a_generator_that_is_none() -> None:
    for tensor in (torch.empty(3), data().t()[1:]):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, but got 7"):
            init.normal_(tensor, generator=7)  # type: ignore[arg-type]

"""A test for each of torch's private names, with what it is used for: a torch without it fails here."""

import gc
import sys
import weakref
from hashlib import blake2b
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fastinit.base import torch_internals as internals

aten = torch.ops.aten


class Seen(internals.TorchDispatchMode):
    """Counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functions: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_are_counted_left_and_paused() -> None:
    x = torch.zeros(2)
    assert internals.dispatch_modes() == 0
    with internals.without_modes():
        x.add_(1)
    with Seen() as outer, Seen() as inner:
        assert internals.dispatch_modes() == 2
        for block, shown in (
            (internals.without_modes(), (0, 0)),
            (internals.without_dispatch(), (0, 0)),
            (internals.paused(inner), (1, 0)),
            (internals.paused(outer), (1, 1)),  # it is not the innermost, so nothing is paused
        ):
            outer.functions.clear()
            inner.functions.clear()
            with block:
                x.add_(1)
            assert (len(outer.functions), len(inner.functions)) == shown
    assert x.tolist() == [5.0, 5.0]


def test_what_modules_load_from_nothing() -> None:
    batches = nn.BatchNorm1d(2)
    before = batches.num_batches_tracked._version
    found = {key: internals.loads_from_nothing(batches, key) for key in batches._buffers}
    assert [key for key, is_so in found.items() if is_so] == ["num_batches_tracked"]
    assert batches.num_batches_tracked._version == before
    plain = nn.Module()
    plain.register_buffer("x", torch.zeros(2))
    assert not internals.loads_from_nothing(plain, "x")


def test_without_functions() -> None:
    class Asked(TorchFunctionMode):
        calls = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    x = torch.zeros(2)
    with Asked() as mode:
        with internals.without_functions():
            x.add_(1)
        assert mode.calls == 0
        x.add_(1)
        assert mode.calls == 1


def test_an_assignment_to_data_is_seen() -> None:
    class Assigned(TorchFunctionMode):
        seen = False

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen |= func == internals.set_data
            return func(*args, **(kwargs or {}))

    x = torch.zeros(2)
    with Assigned() as mode:
        x.add_(1)
        assert not mode.seen
        x.data = torch.ones(2)
        assert mode.seen


def test_a_wrapper_says_that_it_has_operators_of_its_own() -> None:
    class Wrapper(Tensor):
        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    assert nn.Parameter.__torch_dispatch__ is internals.plain_dispatch
    assert Wrapper.__torch_dispatch__ is not internals.plain_dispatch
    assert not internals.is_traceable_wrapper_subclass(torch.zeros(2))


@pytest.mark.parametrize(
    ("func", "name", "written", "gives_view"),
    [
        (aten.normal_.default, "normal_", ["self"], False),
        (aten.add.Tensor, "add", [], False),
        (aten.add.out, "add", ["out"], False),
        (aten.t.default, "t", [], True),
    ],
)
def test_schemas(func: Any, name: str, written: list[str], gives_view: bool) -> None:
    assert internals.operator_name(func) == name
    arguments = internals.schema_arguments(func)
    assert [a.name for a in arguments if internals.is_written(a)] == written
    (given,) = internals.schema_returns(func)
    assert (given.alias_info is not None and not internals.is_written(given)) == gives_view
    assert internals.schema_arguments(object()) == ()


def test_views_know_their_base_and_versions_count() -> None:
    x = torch.zeros(4, 4)
    assert internals.base_of(x) is None
    assert internals.base_of(x[1:].t()) is x
    before = internals.version_of(x)
    x.t()[0].add_(1)
    assert internals.version_of(x) == before + 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storages(device: str) -> None:
    x, y = torch.empty(4, device=device), torch.empty(4, device=device)
    assert internals.storage_id(x) == internals.storage_id(x[1:]) != internals.storage_id(y)
    assert internals.storage_uses(x.untyped_storage()) == 1
    view = x[1:]
    assert internals.storage_uses(x.untyped_storage()) == 2
    del view
    gc.collect()
    assert internals.storage_uses(x.untyped_storage()) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_storage_is_given_lives_as_long_as_that(device: str) -> None:
    """Of Python, but nothing promises it."""

    class Record:
        pass

    x, record = torch.empty(4, device=device), Record()
    x.untyped_storage().record, kept = record, weakref.ref(record)
    del record
    gc.collect()
    view = x.t()
    del x
    gc.collect()
    assert view.untyped_storage().record is kept()
    del view
    gc.collect()
    assert kept() is None


def test_a_batch_norm_that_says_what_it_writes() -> None:
    schema = internals.honest_batch_norm._schema
    assert [a.name for a in schema.arguments if internals.is_written(a)] == [
        "running_mean",
        "running_var",
    ]


def test_what_has_no_memory() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((internals.is_in_transform(x), internals.is_functionalised(x)))
        return x

    torch.func.vmap(look)(torch.zeros(3))
    torch.func.functionalize(look)(torch.zeros(3))
    assert seen[0] == (True, False)
    assert seen[1][1]
    plain, zero = torch.zeros(3), torch._efficientzerotensor((3,))
    assert not internals.is_in_transform(plain)
    assert not internals.is_functionalised(plain)
    assert (internals.is_zero_tensor(plain), internals.is_zero_tensor(zero)) == (False, True)
    with FakeTensorMode():
        fake = torch.zeros(3)
    assert internals.is_fake_class(type(fake))
    assert not internals.is_fake_class(Tensor)
    assert not internals.is_export_tensor(plain)


def test_what_export_traces_with() -> None:
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    with FunctionalTensorMode():
        traced = FunctionalTensor.to_functional(torch.zeros(2))
    assert internals.is_export_tensor(traced)


def test_export_is_told_from_compiling() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (1 if internals.is_exporting() else 2)

    x = torch.zeros(1)
    assert [Told()(x), torch.compile(Told(), backend="eager", fullgraph=True)(x)] == [2, 2]
    assert torch.export.export(Told(), (x,), strict=True).module()(x) == 1


def test_tensors_with_weak_references_are_swapped() -> None:
    lstm = nn.LSTM(2, 2)  # which keeps weak references to its parameters
    one, other = lstm.weight_ih_l0, nn.Parameter(torch.zeros(8, 2))
    values = one.detach().clone()
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(one, other)
    internals.swap(one, other)
    assert lstm.weight_ih_l0 is one
    assert not one.any()
    assert torch.equal(other, values)


def test_a_constant_when_compiled() -> None:
    def untraceable(text: str) -> int:
        return blake2b(text.encode()).digest()[0]

    def function(x: Tensor) -> Tensor:
        return x + untraceable("name")

    internals.constant_when_compiled(untraceable)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(2)), function(torch.zeros(2)))


def test_a_backward_pass_is_known_while_it_runs() -> None:
    seen = []

    class Looking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(internals.backward_pass())
            return grad

    assert internals.backward_pass() == -1
    Looking.apply(torch.ones(2, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]
    assert len(seen) == 1
    assert seen[0] >= 0


def test_trees() -> None:
    tree = ([1, (torch.zeros(2), "a")], {"k": torch.ones(1)})
    leaves = internals.tree_leaves(tree)
    assert [type(leaf).__name__ for leaf in leaves] == ["int", "Tensor", "str", "Tensor"]
    assert internals.tree_flatten(tree)[0] == leaves
    assert internals.tree_map_only(Tensor, Tensor.numel, tree) == ([1, (2, "a")], {"k": 1})
    assert internals.tree_map(str, ([1], {"k": 2})) == (["1"], {"k": "2"})


def test_compiled_modules_are_told_from_others() -> None:
    inside = nn.Sequential(nn.Linear(2, 2))
    inside[0].compile(backend="eager")
    assert internals.is_compiled(torch.compile(nn.Linear(2, 2), backend="eager"))
    assert [internals.is_compiled(module) for module in inside.modules()] == [False, True]
    assert not internals.is_compiled(torch.jit.script(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_of_all_modules_are_seen(kind: str) -> None:
    assert not internals.global_hooks()
    register = getattr(torch.nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda *args: None)
    assert internals.global_hooks()
    handle.remove()
    assert not internals.global_hooks()


def test_a_hook_of_all_modules_runs_first() -> None:
    ran: list[int] = []
    register = torch.nn.modules.module.register_module_forward_hook
    handles = [register(lambda *args, i=i: ran.append(i)) for i in range(3)]
    internals.last_global_hook_first()
    nn.Identity()(1)
    for handle in handles:
        handle.remove()
    assert ran == [2, 0, 1]


def test_weight_norm_is_a_length_times_a_direction() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), dim=1)
    held = layer.parametrizations["weight"]
    assert internals.is_weight_norm(held[0])
    g, v = held.original0, held.original1
    along = torch.norm_except_dim(v, 2, held[0].dim)
    torch.testing.assert_close(layer.weight, v * (g / along))


def test_buffers_that_are_not_persistent_are_told_from_others() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.zeros(1))
    module.register_buffer("lost", torch.zeros(1), persistent=False)
    assert list(module.state_dict()) == ["kept"]
    assert [internals.is_persistent(module, key) for key in ("kept", "lost")] == [True, False]


def test_without_python() -> None:
    x = torch.zeros(2)
    with Seen() as mode:
        with internals.without_python():
            x.add_(1)
        assert mode.functions == []
        x.add_(1)
    assert mode.functions == [aten.add_.Tensor]


def test_a_mode_is_called_as_it_is() -> None:
    class Told(Seen):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.caller = sys._getframe(1).f_code.co_filename
            return super().__torch_dispatch__(func, types, args, kwargs)

    internals.called_as_it_is(Told)
    assert "__wrapped__" not in vars(Told.__torch_dispatch__)
    with Told() as mode:
        torch.zeros(2).add_(1)
    assert mode.caller == __file__


def test_function_modes_are_counted() -> None:
    class Asked(TorchFunctionMode):
        pass

    assert internals.function_modes() == 0
    with Asked(), Asked():
        assert internals.function_modes() == 2

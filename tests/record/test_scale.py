"""A parameter costs the same among many; what is recorded at once is as its operations are."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import Part, deferred, materialize_, recipes, recorded_plan


def calls(run: Callable[[], object]) -> int:
    """How many functions are called by Python, builtin ones included."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def layers(number: int) -> nn.Module:
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(number))


def recorded(build: Callable[[], nn.Module]) -> nn.Module:
    with deferred(seed=0):
        return build()


def costs(number: int) -> dict[str, int]:
    """Calls of each step for so many layers; those of the constructor alone are taken off."""
    kept: dict[str, Any] = {}
    plain = calls(lambda: layers(number))
    with deferred(seed=0):
        found = {"deferred": calls(lambda: kept.update(model=layers(number))) - plain}
    found["plan"] = calls(lambda: kept.update(plan=recorded_plan(kept["model"])))
    found["materialize_"] = calls(lambda: materialize_(kept["model"]))
    found["apply_"] = calls(lambda: kept["plan"].apply_(kept["model"]))
    return found


def test_calls_are_as_many_for_each_parameter_of_many() -> None:
    costs(10)  # what is looked up once
    few, many = costs(100), costs(400)
    for step, count in many.items():
        assert count <= 4.2 * few[step], (
            f"{step}: {few[step]} calls for 100 layers, {count} for 400"
        )
    assert many["deferred"] / 800 < 250
    assert many["apply_"] / 800 < 130


@pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without distributed")
def test_calls_on_a_rank_are_as_many_in_any_world() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    plan = fastinit.Plan.from_model(layers(20), recipes.torch_default)

    def on_one_of(ranks: int) -> int:
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        try:
            model = nn.Sequential(*layers(20))
            fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (ranks,)))
            plan.apply_(model)  # what is looked up once
            return calls(lambda: plan.apply_(model))
        finally:
            torch.distributed.destroy_process_group()

    few, many = on_one_of(4), on_one_of(4096)
    assert many <= 1.05 * few, f"{few} calls on one of 4 ranks, {many} on one of 4,096"


def test_blocks_of_a_shard_in_many_turns_are_found_in_linear_time() -> None:
    """FSDP2 over tensor parallelism cuts in as many turns as there are ranks."""

    def cost(turns: int) -> int:
        part = Part((2 * turns, 8)).split(0, ranks=2, rank=1, stride=turns)
        held = torch.empty(part.local_shape)

        def find() -> None:
            found = Part(part.shape, part.runs).pieces(held)
            assert len(found) == turns

        return calls(find)

    few, many = cost(64), cost(1024)
    assert many <= 1.05 * 16 * few, f"{few} calls for 64 turns, {many} for 1,024"


class Unchanged(TorchFunctionMode):
    """Changes nothing, but is there: each function is then recorded as the operations that it runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


INITS: dict[str, Callable[[Tensor], object]] = {
    "uniform_": nn.init.uniform_,
    "uniform_ by name": lambda x: nn.init.uniform_(tensor=x, b=2, a=-1.5),
    "normal_": lambda x: nn.init.normal_(x, 0.5, std=3),
    "constant_": lambda x: nn.init.constant_(x, 7),
    "constant_ of bool": lambda x: nn.init.constant_(x, True),
    "constant_ of a tensor": lambda x: nn.init.constant_(x, torch.tensor(2.0)),  # type: ignore[arg-type]
    "ones_": nn.init.ones_,
    "zeros_": nn.init.zeros_,
    "xavier_uniform_": lambda x: nn.init.xavier_uniform_(x, gain=2.0),
    "xavier_normal_": nn.init.xavier_normal_,
    "kaiming_uniform_": lambda x: nn.init.kaiming_uniform_(x, a=5**0.5),
    "kaiming_normal_": lambda x: nn.init.kaiming_normal_(x, mode="fan_out", nonlinearity="relu"),
    "of a part": lambda x: (nn.init.ones_(x), nn.init.kaiming_uniform_(x[1:3])),
    "transposed": lambda x: nn.init.xavier_uniform_(x.transpose(0, 1)),
    "of data": lambda x: nn.init.normal_(x.data),
    "twice": lambda x: (nn.init.normal_(x), nn.init.ones_(x[0]), nn.init.uniform_(x)),
    "then scaled": lambda x: nn.init.normal_(x).data.mul_(0.5),
    "with a generator": lambda x: nn.init.normal_(x, generator=torch.Generator().manual_seed(3)),
    "of no element": lambda x: (nn.init.zeros_(x[:0]), nn.init.ones_(x)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("name", INITS)
def test_what_is_recorded_at_once_is_what_the_operations_are(name: str, dtype: torch.dtype) -> None:
    if dtype.is_complex and ("uniform" in name or name in ("of a part", "transposed", "twice")):
        pytest.skip("torch draws no complex uniform numbers")

    def build() -> nn.Module:
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(4, 3, 2, dtype=dtype))
        INITS[name](model.w)
        return model

    def shown() -> nn.Module:
        with Unchanged():
            return build()

    ours, theirs = recorded(build), recorded(shown)
    if (plan := recorded_plan(ours))["w"].__class__ is fastinit.Fill:
        assert plan == recorded_plan(theirs)
    assert torch.equal(materialize_(ours).w, materialize_(theirs).w)


def test_what_an_init_returns_is_its_tensor_and_errors_are_its_own() -> None:
    with deferred(seed=0):
        layer = nn.Linear(2, 2)
        assert nn.init.normal_(layer.weight) is layer.weight
        assert nn.init.zeros_(tensor=layer.bias) is layer.bias
        with pytest.raises(ValueError, match="Fan in and fan out"):
            nn.init.kaiming_uniform_(layer.bias)
        with pytest.raises(TypeError, match="nonsense"):
            nn.init.zeros_(layer.bias, nonsense=1)  # type: ignore[call-arg]
    assert recorded_plan(layer)["weight"] == fastinit.Fill.normal()


def test_modes_of_the_constructor_are_shown_what_it_calls() -> None:
    class Skips(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is nn.init.kaiming_uniform_:
                return nn.init.ones_(kwargs["tensor"])
            return func(*args, **kwargs)

    class Seen(TorchDispatchMode):
        seen: tuple[str, ...] = ()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen += (func.__name__,)
            return func(*args, **(kwargs or {}))

    with deferred(seed=0):
        with Skips():
            skipped = nn.Linear(2, 2, bias=False)
        with Seen() as mode:
            nn.init.normal_(nn.Linear(2, 2).weight)
    assert recorded_plan(skipped)["weight"] == fastinit.Fill.constant(1.0)
    assert "normal_.default" in mode.seen


def test_strides_are_those_that_the_constructor_gave() -> None:
    with deferred(seed=0):
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(6).as_strided((1, 6), (100, 1)))
        nn.init.normal_(model.w)
    assert model.w.stride() == (100, 1)
    assert materialize_(model).w.stride() == (100, 1)
